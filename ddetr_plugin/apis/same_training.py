"""Whether a work folder holds the training at hand, or one on other data or with other settings."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ddetr_plugin.apis.own_data import class_names, dataset_settings
from ddetr_plugin.data_checks import SHOWN, Split
from ddetr_plugin.engine.resuming.resumption import newest_complete

__all__ = [
    'OtherTrainingError',
    'check_same_training',
    'describe_data',
    'describe_settings',
    'last_checkpoint',
]

SETTINGS = (
    'model',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'custom_hooks',
    'randomness',
    'load_from',
)  # of a config: other ones make another training
WORKER_SETTINGS = ('num_workers', 'persistent_workers', 'prefetch_factor', 'pin_memory')


class OtherTrainingError(ValueError):
    """A work folder holds checkpoints of another training; the message lists the differences."""


def describe_data(train: Split, val: Split) -> dict:
    """What a training is on, for `check_same_training`."""
    described: dict[str, Any] = dict(classes=class_names(train))
    for name, split in (('training', train), ('validation', val)):
        content = json.dumps(split.content, sort_keys=True).encode()
        described[f'{name} data'] = dict(
            annotations=str(split.ann_file.resolve()),
            content=f'sha256 {hashlib.sha256(content).hexdigest()}',
            pictures=str(split.image_folder.resolve()),
        )
    return described


def describe_settings(config: Config, train: Split) -> dict:
    """The settings of a config that its weights depend on, for `check_same_training`."""
    settings = {name: config.get(name) for name in SETTINGS}
    filled_in = dataset_settings(train, class_names(train))
    loader = {k: v for k, v in config.train_dataloader.items() if k not in WORKER_SETTINGS}
    loader['dataset'] = {
        k: v for k, v in loader['dataset'].items() if k not in filled_in or v != filled_in[k]
    }
    return dict(settings, train_dataloader=loader)


def find_differences(before, now, name: str = '') -> list[str]:
    """Lines that name the values which are not the same in two nested dicts and lists."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys: Sequence = sorted(before.keys() | now.keys())
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        keys = range(len(now))
        before, now = dict(enumerate(before)), dict(enumerate(now))
    elif before == now:
        return []
    else:
        texts = [str(value) for value in (before, now)]
        before, now = (text if len(text) <= 100 else f'{text[:97]}...' for text in texts)
        return [f'{name}: was {before}, now {now}']
    lines = []
    for key in keys:
        path = f'{name}.{key}' if name else str(key)
        lines += find_differences(before.get(key), now.get(key), path)
    return lines


def check_same_training(work_dir: Path, training: Mapping) -> None:
    """Refuse a work folder that holds checkpoints of another training.

    Args:
        work_dir: gets training.json, or has it from an earlier run.
        training: what the training is on and how it is done.

    Raises:
        OtherTrainingError: it does; nothing was written.
    """
    stated = work_dir / 'training.json'
    training = json.loads(json.dumps(training, default=str))
    if last_checkpoint(work_dir)[0]:
        try:
            differences = find_differences(json.loads(stated.read_text()), training)
        except (OSError, ValueError):
            differences = [f'{stated} is missing or cannot be read: on what, nobody knows']
        if differences:
            shown = differences[:SHOWN]
            if len(differences) > len(shown):
                shown.append(f'... and {len(differences) - len(shown)} more')
            lines = '\n    '.join(shown)
            raise OtherTrainingError(
                f'{work_dir} holds another training:\n    {lines}\n'
                'Remove it, or name another folder with --work-dir'
            )
    stated.write_text(json.dumps(training, indent=1) + '\n')


def last_checkpoint(work_dir: Path) -> tuple[str | None, int]:
    """(path, iteration) of the newest complete checkpoint; (None, 0) without one."""
    pointer = work_dir / 'last_checkpoint'
    named = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    path = newest_complete([work_dir], named)
    number = re.search(r'iter_(\d+)', Path(path or '').name)
    return (path, int(number[1])) if number else (None, 0)
