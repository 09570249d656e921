"""The config of a training on a data set of one's own, or on the scenes of the demo."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from ddetr_plugin.apis.config_reading import load_config
from ddetr_plugin.config_types import has_type
from ddetr_plugin.data_checks import DataError, Split, describe_findings, has_errors
from ddetr_plugin.intake import DataFolder
from ddetr_plugin.intake.checks import check_data, describe, describe_changes, read_data

__all__ = [
    'CUSTOM_CONFIG',
    'DEMO_CONFIG',
    'DEMO_DATA',
    'add_clock',
    'class_names',
    'dataset_settings',
    'fill_in',
    'find_data',
    'read_config',
    'set_iterations',
]

DEMO_CONFIG = 'digits'
CUSTOM_CONFIG = 'own_images'
DEMO_DATA = Path('data/demo')
NEEDED = (
    'model',
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'val_evaluator',
    'test_evaluator',
    'train_cfg',
    'optim_wrapper',
    'default_hooks',
)  # of a config
# What to give instead of overriding a variable of the configs here, or what such a training sets.
OPTIONS = dict(
    max_iters='give --iters',
    eval_interval='set train_cfg.val_interval and default_hooks.checkpoint.interval',
    work_dir='give --work-dir',
    data_root='give --data',
)


def find_data(
    folder: str | os.PathLike,
    scales: Sequence[tuple[int, int]],
    keep_super_classes: bool = False,
    boxes: str = 'pixels',
    log: Callable[[str], None] = print,
) -> DataFolder:
    """The checked DataFolder of a data set, a part held out where it has no validation data.

    Args:
        folder: of the data set.
        scales: that its images are resized to, see `config_scales`.
        keep_super_classes: see `read_folder`.
        boxes: what their numbers are, see `read_data`.
        log: takes lines on what was found.

    Raises:
        OSError or ValueError: there is no data set in `folder`.
        DataError: something stands in the way of a training.
    """
    log(f'Checking {folder}')
    data = read_data(folder, keep_super_classes, boxes)
    findings = check_data(data, scales)
    for line in describe_changes(data) + describe_findings(findings):
        log(line)
    if has_errors(findings):
        raise DataError(findings, 'Correct it, then run the same command again')
    if data.val is None:
        data = data.hold_out()
        log(
            'There are no validation annotations (annotations/instances_val.json): a fifth of '
            'the training pictures is held out instead'
        )
    for split in data.both():
        log(describe(split))
    return data


def read_config(
    path: str | os.PathLike | Config,
    overrides: Mapping | None,
    work_dir: str | os.PathLike,
    iters: int | None = None,
) -> Config:
    """The config of a training that counts iterations, for `iters` of them if given.

    Args:
        path, overrides, work_dir: see `load_config`.

    Raises:
        OSError: there is no such file, or it is no config.
        ValueError: it is a config of another kind, or `overrides` do not fit it.
    """
    config = load_config(path, overrides, work_dir, options=OPTIONS)
    missing = [part for part in NEEDED if part not in config]
    if missing:
        raise ValueError(
            f'config {path} has no {", ".join(missing)}; a training with validation needs '
            f'{", ".join(NEEDED)}'
        )
    loop = config.train_cfg
    if not has_type(loop, 'IterBasedTrainLoop') or 'max_iters' not in loop:
        raise ValueError(
            f'config {path} does not count iterations (train_cfg is {dict(loop)}), but '
            "tools/demo.py does: set train_cfg = dict(type='IterBasedTrainLoop', max_iters=..., "
            'val_interval=...), or train with tools/train.py'
        )
    if config.default_hooks.get('checkpoint', {}).get('by_epoch', True):
        raise ValueError(
            f'config {path} writes checkpoints by epoch, but tools/demo.py resumes by iteration: '
            'set by_epoch=False and an interval of iterations in default_hooks.checkpoint'
        )
    if iters is not None:
        if 'train_cfg.max_iters' in (overrides or ()):
            raise ValueError('--iters and train_cfg.max_iters say the same; give one of them')
        set_iterations(config, iters)
    return config


def set_iterations(config: Config, iters: int) -> None:
    """Make a training longer or shorter: loop, schedules and intervals in proportion.

    Args:
        config: changed in place.
        iters: iterations, 1 or more.
    """
    factor = iters / config.train_cfg.max_iters

    def scaled(number):
        return max(1, round(number * factor))

    config.train_cfg.max_iters = iters
    if 'val_interval' in config.train_cfg:
        config.train_cfg.val_interval = scaled(config.train_cfg.val_interval)
    hooks = config.default_hooks
    if hooks.checkpoint.get('interval', -1) > 0:
        hooks.checkpoint.interval = scaled(hooks.checkpoint.interval)
    if 'interval' in hooks.get('logger', ()):
        hooks.logger.interval = min(hooks.logger.interval, scaled(hooks.logger.interval))
    schedules = config.get('param_scheduler') or []
    for schedule in schedules if isinstance(schedules, list) else [schedules]:
        whole = schedule.get('T_max') == schedule.get('end', 0) - schedule.get('begin', 0)
        if schedule.get('begin'):
            # It may become 0, where a training of one iteration begins.
            schedule.begin = round(schedule.begin * factor)
        for name in ('end', 'T_max', 'step_size', 'total_iters'):
            if name in schedule:
                schedule[name] = scaled(schedule[name])
        if whole:
            schedule.T_max = schedule.end - schedule.get('begin', 0)
        if 'milestones' in schedule:
            schedule.milestones = [scaled(milestone) for milestone in schedule.milestones]


def add_clock(config: Config) -> None:
    """Add the hook that counts train_seconds where a config does without."""
    hooks = config.get('custom_hooks') or []
    if not any(has_type(hook, 'TrainClockHook') for hook in hooks):
        config.custom_hooks = [*hooks, dict(type='ddetr_plugin.TrainClockHook')]


def dataset_settings(split: Split, classes: Sequence[str]) -> dict:
    """What says which data a dataset loads; `classes` are names."""
    return dict(
        data_root='',
        ann_file=str(split.ann_file.resolve()),
        data_prefix=dict(img=str(split.image_folder.resolve()) + '/'),
        metainfo=dict(classes=classes),
    )


def class_names(split: Split) -> tuple[str, ...]:
    """The names of a split's classes, in the order of their labels."""
    return tuple(category['name'] for category in split.content['categories'])


def fill_in(config: Config, train: Split, val: Split) -> None:
    """Put files and classes into a config of `read_config`, in place."""
    classes = class_names(train)
    for loader, split in (
        ('train_dataloader', train),
        ('val_dataloader', val),
        ('test_dataloader', val),
    ):
        config[loader].dataset.update(dataset_settings(split, classes))
    for evaluator in ('val_evaluator', 'test_evaluator'):
        config[evaluator].ann_file = str(val.ann_file.resolve())
    config.model.bbox_head.num_classes = len(classes)
    if 'num_classes' in config.model.query_head:
        config.model.query_head.num_classes = len(classes)
