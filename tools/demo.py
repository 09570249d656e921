"""Train on the demo's scenes or on your own pictures, evaluate, and draw.

    python tools/demo.py                 # digits on clutter; the data is made if need be
    python tools/demo.py --data FOLDER   # your own data set: COCO, YOLO, Pascal VOC or LabelMe

Leaves in the work folder (work_dirs/demo/ or work_dirs/<folder name>/): checkpoints, metrics.json,
curves.png, detections.png and detections/. Interrupted, the same command resumes; when the training
is complete it only evaluates and draws again. training.json says what the training is on and how it
is done: with other data or settings, the tool stops instead of resuming or evaluating it.
"""

import argparse
import hashlib
import inspect
import json
import re
import sys
from pathlib import Path

import check_dataset
import make_demo_data
import report
from check_dataset import config_scales

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.config_files import find_config
from ddetr_plugin.config_types import has_type
from ddetr_plugin.engine.launch import (
    STOPPED,
    add_config_overrides,
    build_runner,
    load_config,
)
from ddetr_plugin.engine.precision import add_amp_option, set_precision
from ddetr_plugin.engine.resuming.resumption import newest_complete
from ddetr_plugin.engine.work_dir.lock import lock_work_dir

# isort: split
from mmengine.runner import Runner

DEMO_CONFIG = find_config('digits')
CUSTOM_CONFIG = find_config('own_images')
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
SETTINGS = (
    'model',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'custom_hooks',
    'randomness',
    'load_from',
)  # of a config: other ones make another training
# What a Runner reads of a config; everything else is a variable of the file.
READ = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg', 'work_dir'} | {
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
}
# Options that say what a variable of the configs here, or of all configs, seems to say.
OPTIONS = dict(
    max_iters='give --iters',
    eval_interval='set train_cfg.val_interval and default_hooks.checkpoint.interval',
    work_dir='give --work-dir',
    data_root='give --data',
)
WORKER_SETTINGS = ('num_workers', 'persistent_workers', 'prefetch_factor', 'pin_memory')


def find_data(folder, scales, keep_super_classes=False, boxes='pixels'):
    """The checked DataFolder of a data set, a part held out where it has no validation data.

    Args:
        folder: of the data set.
        scales: that its pictures are resized to, see `config_scales`.
        keep_super_classes: see `read_folder`.
        boxes: what their numbers are, see `check_dataset.read_data`.

    Raises:
        OSError or ValueError: there is no data set in `folder`.
        SystemExit: something stands in the way of a training; it has been printed.
    """
    print(f'Checking {folder}')
    data = check_dataset.read_data(folder, keep_super_classes, boxes)
    check_dataset.print_changes(data)
    if check_dataset.print_findings(check_dataset.check_data(data, scales)):
        sys.exit('Correct the errors above, then run the same command again.')
    if data.val is None:
        data = data.hold_out()
        print(
            'There are no validation annotations (annotations/instances_val.json): a fifth of '
            'the training pictures is held out instead'
        )
    print(check_dataset.describe(data.train))
    print(check_dataset.describe(data.val))
    return data


def read_config(path, overrides, work_dir, iters=None):
    """The config of a training that counts iterations, for `iters` of them if given.

    Raises:
        OSError: there is no such file, or it is no config.
        ValueError: it is a config of another kind, or `overrides` do not fit it.
    """
    try:
        config = load_config(path, overrides, work_dir)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f'{path} and --cfg-options do not go together: {error}') from error
    except SyntaxError as error:
        raise ValueError(f'config {path} is not valid Python: {error}') from error
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
    for key in overrides or ():
        refuse_unread(key, config)
    if iters is not None:
        if 'train_cfg.max_iters' in (overrides or ()):
            raise ValueError('--iters and train_cfg.max_iters say the same; give one of them')
        set_iterations(config, iters)
    return config


def refuse_unread(key, config):
    """Raises ValueError where a dotted key of --cfg-options is one that nothing reads.

    A config file's variables are values of the config, too, but were used when it was read.
    """
    first, _, rest = key.partition('.')
    if first in READ or 'runner_type' in config:
        return
    advice = OPTIONS.get(first)
    if not advice:
        places = [] if rest else find_key(config.to_dict(), first)
        shown = places[: check_dataset.SHOWN]
        more = ', ...' if len(places) > len(shown) else ''
        advice = f'set it where it is used: {", ".join(shown)}{more}'
        if not places:
            advice = f'what is read is {", ".join(sorted(READ))}'
    raise ValueError(f'--cfg-options {key} would have no effect, as nothing reads it; {advice}')


def find_key(value, name, path=''):
    """The dotted paths of a key that occurs below the parts of a config that are read."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return []
    found = []
    for key, child in value.items():
        if path or key in READ:
            here = f'{path}.{key}' if path else str(key)
            found += [here] * (key == name) + find_key(child, name, here)
    return found


def set_iterations(config, iters):
    """Makes a training longer or shorter: loop, schedules and intervals in proportion."""
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


def add_clock(config):
    """Adds the hook that counts train_seconds where a config does without."""
    hooks = config.get('custom_hooks') or []
    if not any(has_type(hook, 'TrainClockHook') for hook in hooks):
        config.custom_hooks = [*hooks, dict(type='ddetr_plugin.TrainClockHook')]


def dataset_settings(split, classes):
    """What says which data a dataset loads; `classes` are names."""
    return dict(
        data_root='',
        ann_file=str(split.ann_file.resolve()),
        data_prefix=dict(img=str(split.image_folder.resolve()) + '/'),
        metainfo=dict(classes=classes),
    )


def class_names(split):
    """The names of a split's classes, in the order of their labels."""
    return tuple(category['name'] for category in split.content['categories'])


def fill_in(config, train, val):
    """Puts files and classes into a config that was just read from its file."""
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


def describe_data(train, val):
    """What a training is on, for `check_same_training`."""
    described = dict(classes=class_names(train))
    for name, split in (('training', train), ('validation', val)):
        content = json.dumps(split.content, sort_keys=True).encode()
        described[f'{name} data'] = dict(
            annotations=str(split.ann_file.resolve()),
            content=f'sha256 {hashlib.sha256(content).hexdigest()}',
            pictures=str(split.image_folder.resolve()),
        )
    return described


def describe_settings(config, train):
    """The settings of a config that its weights depend on, for `check_same_training`."""
    settings = {name: config.get(name) for name in SETTINGS}
    filled_in = dataset_settings(train, class_names(train))
    loader = {k: v for k, v in config.train_dataloader.items() if k not in WORKER_SETTINGS}
    loader['dataset'] = {
        k: v for k, v in loader['dataset'].items() if k not in filled_in or v != filled_in[k]
    }
    return dict(settings, train_dataloader=loader)


def find_differences(before, now, name=''):
    """Lines that name the values which are not the same in two nested dicts and lists."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
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


def check_same_training(work_dir, training):
    """Stops where the work folder holds checkpoints of another training.

    Args:
        work_dir: gets training.json, or has it from an earlier run.
        training: dict of what the training is on and how it is done.
    """
    stated = work_dir / 'training.json'
    training = json.loads(json.dumps(training, default=str))
    if last_checkpoint(work_dir)[0]:
        try:
            differences = find_differences(json.loads(stated.read_text()), training)
        except (OSError, ValueError):
            differences = [f'{stated} is missing or cannot be read: on what, nobody knows']
        if differences:
            shown = differences[: check_dataset.SHOWN]
            if len(differences) > len(shown):
                shown.append(f'... and {len(differences) - len(shown)} more')
            lines = '\n    '.join(shown)
            sys.exit(
                f'error: {work_dir} holds another training:\n    {lines}\n'
                'Remove it, or name another folder with --work-dir'
            )
    stated.write_text(json.dumps(training, indent=1) + '\n')


def last_checkpoint(work_dir):
    """(path, iteration) of the newest complete checkpoint; (None, 0) without one."""
    pointer = work_dir / 'last_checkpoint'
    named = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    path = newest_complete([work_dir], named)
    number = re.search(r'iter_(\d+)', Path(path or '').name)
    return (path, int(number[1])) if number else (None, 0)


def train_and_test(config, work_dir):
    """Trains, or goes on training, or only loads; then evaluates.

    Returns:
        dict: bbox_mAP and its kin, train_seconds (validations included), and iterations, those
            of the weights that were evaluated.
    """
    max_iters = config.train_cfg.max_iters
    path, iteration = last_checkpoint(work_dir)
    config.test_evaluator.outfile_prefix = str(work_dir / 'val')
    # Else mmengine logs mAP over epochs, which a loop of iterations does not count.
    config.default_hooks.logger.log_metric_by_epoch = False
    if iteration < max_iters:
        if path:
            print(f'Resuming from {path}')
            config.resume, config.load_from = True, path
        runner = build_runner(config)
        try:
            runner.train()
        except KeyboardInterrupt:
            sys.exit('\nInterrupted. The same command resumes from the last checkpoint.')
        except STOPPED as error:
            sys.exit(f'error: {error}')
        iteration = runner.iter
        seconds = runner.message_hub.get_info('train_seconds')
    else:
        print(f'The training is complete; evaluating {path}')
        runner = build_runner(config)
        # The Runner takes over weights only; clock and iteration are in the checkpoint beside them.
        checkpoint = runner.load_checkpoint(path)
        iteration = checkpoint['meta']['iter']
        seconds = checkpoint['message_hub']['runtime_info']['train_seconds']
        # The checkpoint was written before the last validation; the run that trained timed it.
        seconds = earlier_seconds(work_dir, iteration) or seconds
    try:
        results = runner.test()
    except STOPPED as error:
        sys.exit(f'error: {error}')
    metrics = {
        name.removeprefix('coco/'): value
        for name, value in results.items()
        if name.startswith('coco/')
    }
    return dict(metrics, train_seconds=round(seconds, 1), iterations=iteration)


def earlier_seconds(work_dir, iterations):
    """The train_seconds that an earlier run wrote for as many iterations; None without one."""
    try:
        metrics = json.loads((work_dir / 'metrics.json').read_text())
        return metrics['train_seconds'] if metrics['iterations'] == iterations else None
    except (OSError, ValueError, TypeError, LookupError):
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', type=Path, help='your own data set; default: the demo scenes')
    parser.add_argument('--config', help='default: the demo or the custom config in configs/')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/<name of the data>')
    parser.add_argument('--iters', type=int, help='length of the training, schedule included')
    add_amp_option(
        parser,
        'mixed precision: scaled float16 on CUDA, bfloat16 autocast on the CPU; has a work folder '
        'of its own, ending with -amp',
    )
    check_dataset.add_box_forms(parser)
    parser.add_argument(
        '--keep-super-classes',
        action='store_true',
        help='keep classes that no box uses and that others name as their supercategory',
    )
    add_config_overrides(parser)
    args = parser.parse_args()
    if args.iters is not None and args.iters < 1:
        parser.error(f'--iters takes a number of iterations from 1 on, got {args.iters}')

    data = args.data or DEMO_DATA
    name = data.resolve().name + ('-amp' if args.amp else '')
    work_dir = args.work_dir or Path('work_dirs') / name
    path = args.config or (CUSTOM_CONFIG if args.data else DEMO_CONFIG)
    try:
        config = read_config(path, args.cfg_options, work_dir, args.iters)
        set_precision(config, args.amp)
        if args.data is None and make_demo_data.make(DEMO_DATA):
            print(f'Made the scenes in {DEMO_DATA}')
        found = find_data(data, config_scales(config), args.keep_super_classes, args.boxes)
        lock_work_dir(work_dir)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    training = describe_data(found.train, found.val)
    # The user's folder is left alone.
    found = found.place(work_dir)
    train, val = found.train, found.val
    fill_in(config, train, val)
    # Once more: what is said explicitly goes before what was filled in.
    config.merge_from_dict(args.cfg_options or {})
    check_dataset.print_findings(check_dataset.check_model(config.model, train, val))
    add_clock(config)
    check_same_training(work_dir, dict(training, **describe_settings(config, train)))
    found.write(work_dir)
    print(f'What is trained on and what is validated on: {train.ann_file}, {val.ann_file}')

    metrics = train_and_test(config, work_dir)
    (work_dir / 'metrics.json').write_text(json.dumps(metrics, indent=2) + '\n')
    report.draw_curves(work_dir, work_dir / 'curves.png')
    report.draw_detections(val, work_dir / 'val.bbox.json', work_dir)
    print(
        f'\nmAP {metrics["bbox_mAP"]:.3f} (AP50 {metrics["bbox_mAP_50"]:.3f}) on '
        f'{len(val.content["images"])} validation pictures after {metrics["iterations"]} '
        f'iterations, {metrics["train_seconds"] / 60:.1f} minutes.\n'
        f'See {work_dir}/metrics.json, curves.png and detections.png.'
    )


if __name__ == '__main__':
    main()
