"""Train on the demo's scenes or on your own pictures, evaluate, and draw.

    python tools/demo.py                 # digits on clutter; the data is made if need be
    python tools/demo.py --data FOLDER   # your own data set in COCO format

Leaves in the work folder (work_dirs/demo/ or work_dirs/<folder name>/): checkpoints, metrics.json,
curves.png, detections.png and detections/. Interrupted, the same command resumes; when the training
is complete it only evaluates and draws again.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from pathlib import Path

import check_dataset
import make_demo_data
import report

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.engine.launch import (
    add_config_overrides,
    build_runner,
    load_config,
    warn_of_unread,
)

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
DEMO_CONFIG = CONFIGS / 'deformable-detr-refine-twostage_effnet-lite0_demo.py'
CUSTOM_CONFIG = CONFIGS / 'deformable-detr-refine-twostage_effnet-lite0_custom.py'
DEMO_DATA = Path('data/demo')


def split_off_validation(train, work_dir):
    """Takes a fifth of the training pictures, drawn with a fixed seed, for validation.

    Pictures with boxes and without are drawn apart, so that there is something to find in both
    parts. The user's folder is left alone: both parts are written to `work_dir`.

    Returns:
        (train, val), as check_dataset.Split.

    Raises:
        SystemExit: there are not two pictures with boxes.
    """
    images = sorted(train.content['images'], key=lambda image: image['id'])
    with_boxes = {annotation['image_id'] for annotation in train.content['annotations']}
    held_out = set()
    for annotated in (True, False):
        part = [i['id'] for i in images if (i['id'] in with_boxes) == annotated]
        if annotated and len(part) < 2:
            sys.exit(
                f'error: {len(part)} picture with boxes cannot be split into training and '
                'validation; annotate more'
            )
        random.Random(0).shuffle(part)
        held_out.update(part[: max(int(annotated), len(part) // 5)])
    work_dir.mkdir(parents=True, exist_ok=True)
    splits = []
    for name, wanted in (('train', False), ('val', True)):
        content = dict(
            train.content,
            images=[i for i in train.content['images'] if (i['id'] in held_out) == wanted],
            annotations=[
                a for a in train.content['annotations'] if (a['image_id'] in held_out) == wanted
            ],
        )
        ann_file = work_dir / f'instances_{name}.json'
        ann_file.write_text(json.dumps(content))
        splits.append(train._replace(name=name, ann_file=ann_file, content=content))
    return splits


def find_data(folder, work_dir):
    """The checked splits of a data set.

    Raises:
        SystemExit: something stands in the way of a training; it has been printed.
    """
    print(f'Checking {folder}')
    try:
        train, val, findings = check_dataset.check_folder(folder)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    if check_dataset.print_findings(findings):
        sys.exit('Correct the errors above, then run the same command again.')
    if val is None:
        train, val = split_off_validation(train, work_dir)
        print(
            'There are no validation annotations (annotations/instances_val.json): a fifth of '
            f'the training pictures is held out instead, see {val.ann_file}'
        )
    print(check_dataset.describe(train))
    print(check_dataset.describe(val))
    return train, val


def fill_in(config, train, val):
    """Puts files and classes into a config that was just read from its file."""
    classes = tuple(category['name'] for category in train.content['categories'])
    for loader, split in (
        ('train_dataloader', train),
        ('val_dataloader', val),
        ('test_dataloader', val),
    ):
        config[loader].dataset.update(
            data_root='',
            ann_file=str(split.ann_file.resolve()),
            data_prefix=dict(img=str(split.image_folder.resolve()) + '/'),
            metainfo=dict(classes=classes),
        )
    for evaluator in ('val_evaluator', 'test_evaluator'):
        config[evaluator].ann_file = str(val.ann_file.resolve())
    config.model.bbox_head.num_classes = len(classes)
    if 'num_classes' in config.model.query_head:
        config.model.query_head.num_classes = len(classes)


def set_iterations(config, iterations):
    """Makes a training of another length: its loop, schedule, validations and checkpoints."""
    before, interval = config.train_cfg.max_iters, config.train_cfg.val_interval
    interval = max(1, iterations * interval // before)
    config.train_cfg.update(max_iters=iterations, val_interval=interval)
    config.default_hooks.checkpoint.interval = interval
    for schedule in config.param_scheduler:
        to_the_end = schedule.end == before
        schedule.begin = min(schedule.begin, iterations // 2)
        schedule.end = iterations if to_the_end else min(schedule.end, iterations // 2)
        if 'T_max' in schedule:
            schedule.T_max = schedule.end - schedule.begin


def prepare_config(file, work_dir, overrides, iterations):
    """The config of a file, with what this tool needs.

    Raises:
        SystemExit: there is none, or it is of another kind.
    """
    try:
        config = load_config(file, work_dir=work_dir)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    if config.get('train_cfg', {}).get('type') != 'IterBasedTrainLoop':
        sys.exit(
            f'error: the config for this tool counts iterations, but train_cfg of {file} is '
            f'{config.get("train_cfg")}; start from {CUSTOM_CONFIG.name}, or use tools/train.py'
        )
    if iterations is not None:
        set_iterations(config, iterations)
    hooks = config.get('custom_hooks', [])
    if not any(hook['type'] == 'ddetr_plugin.TrainClockHook' for hook in hooks):
        config.custom_hooks = [*hooks, dict(type='ddetr_plugin.TrainClockHook')]
    warn_of_unread(config, overrides)
    return config


def what_is_trained(data, train, config):
    """What must be the same for a training to be gone on with or evaluated, by name."""
    annotations = json.dumps(train.content, sort_keys=True).encode()
    return {
        'the data': str(data.resolve()),
        'the training annotations': hashlib.sha256(annotations).hexdigest(),
        'the classes': list(config.train_dataloader.dataset.metainfo.classes),
        **{
            f'{key} of the config': json.loads(json.dumps(config.get(key), default=str))
            for key in ('model', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'randomness')
        },
        'the batch size': config.train_dataloader.batch_size,
        'the pipeline': json.loads(json.dumps(config.train_dataloader.dataset.pipeline)),
    }


def check_same_training(work_dir, wanted):
    """Stops where the work folder belongs to another training than the one that is asked for."""
    stated = work_dir / 'training.json'
    if stated.exists():
        found = json.loads(stated.read_text())
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            sys.exit(
                f'error: {work_dir} holds another training: {", ".join(differing)} differ. Remove '
                'it, or name another folder with --work-dir'
            )
    work_dir.mkdir(parents=True, exist_ok=True)
    stated.write_text(json.dumps(wanted, indent=1))


def last_checkpoint(work_dir):
    """(path, iteration) of the newest checkpoint; (None, 0) without one."""
    pointer = work_dir / 'last_checkpoint'
    if not pointer.exists():
        return None, 0
    path = work_dir / Path(pointer.read_text().strip()).name
    number = re.search(r'iter_(\d+)', path.name)
    return (str(path), int(number[1])) if number and path.exists() else (None, 0)


def train_and_test(config, work_dir):
    """Trains, or goes on training, or only loads; then evaluates.

    Returns:
        dict: bbox_mAP and its kin, train_seconds (validations included), iterations.
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
    else:
        print(f'The training is complete; evaluating {path}')
        runner = build_runner(config)
        # The Runner takes over weights only; the clock is in the checkpoint beside them. That
        # was written before the last validation, which metrics.json has counted.
        clock = runner.load_checkpoint(path)['message_hub']['runtime_info']
        stated = work_dir / 'metrics.json'
        known = json.loads(stated.read_text()) if stated.exists() else clock
        runner.message_hub.update_info('train_seconds', known['train_seconds'])
    results = runner.test()
    metrics = {
        name.removeprefix('coco/'): value
        for name, value in results.items()
        if name.startswith('coco/')
    }
    metrics['train_seconds'] = round(runner.message_hub.get_info('train_seconds'), 1)
    metrics['iterations'] = last_checkpoint(work_dir)[1]
    return metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', type=Path, help='your own data set; default: the demo scenes')
    parser.add_argument('--config', help='default: the demo or the custom config in configs/')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/<name of the data>')
    parser.add_argument('--iters', type=int, help="length of the training; default: the config's")
    add_config_overrides(parser)
    args = parser.parse_args()
    if args.iters is not None and args.iters < 2:
        parser.error(f'--iters must be at least 2, got {args.iters}')

    data = args.data or DEMO_DATA
    work_dir = args.work_dir or Path('work_dirs') / data.resolve().name
    default = CUSTOM_CONFIG if args.data else DEMO_CONFIG
    overrides = args.cfg_options or {}
    config = prepare_config(args.config or default, work_dir, overrides, args.iters)
    try:
        if args.data is None and make_demo_data.make(DEMO_DATA):
            print(f'Made the scenes in {DEMO_DATA}')
    except OSError as error:
        sys.exit(f'error: {error}')
    train, val = find_data(data, work_dir)
    fill_in(config, train, val)
    config.merge_from_dict(overrides)
    check_same_training(work_dir, what_is_trained(data, train, config))

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
