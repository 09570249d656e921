"""Train on the demo's scenes or on your own pictures, evaluate, and draw.

    python tools/demo.py                 # digits on clutter; the data is made if need be
    python tools/demo.py --data FOLDER   # your own data set in COCO format

Leaves in the work folder (work_dirs/demo/ or work_dirs/<folder name>/): checkpoints, metrics.json,
curves.png, detections.png and detections/. Interrupted, the same command resumes; when the training
is complete it only evaluates and draws again.
"""

import argparse
import json
import random
import re
import sys
from pathlib import Path

import check_dataset
import make_demo_data
import report

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.engine.launch import add_config_overrides, build_runner, load_config

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
DEMO_CONFIG = CONFIGS / 'deformable-detr-refine-twostage_effnet-lite0_demo.py'
CUSTOM_CONFIG = CONFIGS / 'deformable-detr-refine-twostage_effnet-lite0_custom.py'
DEMO_DATA = Path('data/demo')


def split_off_validation(train, work_dir):
    """Takes a fifth of the training pictures, drawn with a fixed seed, for validation.

    The user's folder is left alone: both parts are written to `work_dir`.

    Returns:
        (train, val), as check_dataset.Split.

    Raises:
        SystemExit: there is only one picture.
    """
    images = sorted(train.content['images'], key=lambda image: image['id'])
    if len(images) < 2:
        sys.exit('error: one picture cannot be split into training and validation; add more')
    random.Random(0).shuffle(images)
    held_out = {image['id'] for image in images[: max(1, len(images) // 5)]}
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


def check_same_classes(work_dir, config):
    """Stops where the work folder belongs to a training on other classes."""
    stated = work_dir / 'classes.json'
    classes = list(config.train_dataloader.dataset.metainfo.classes)
    if stated.exists() and json.loads(stated.read_text()) != classes:
        sys.exit(
            f'error: {work_dir} holds a training on other classes. Remove it, or name another '
            'folder with --work-dir'
        )
    stated.write_text(json.dumps(classes))


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
        # The Runner takes over weights only; the clock is in the checkpoint beside them.
        clock = runner.load_checkpoint(path)['message_hub']['runtime_info']
        runner.message_hub.update_info('train_seconds', clock['train_seconds'])
    results = runner.test()
    metrics = {
        name.removeprefix('coco/'): value
        for name, value in results.items()
        if name.startswith('coco/')
    }
    metrics['train_seconds'] = round(runner.message_hub.get_info('train_seconds'), 1)
    metrics['iterations'] = max_iters
    return metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', type=Path, help='your own data set; default: the demo scenes')
    parser.add_argument('--config', help='default: the demo or the custom config in configs/')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/<name of the data>')
    add_config_overrides(parser)
    args = parser.parse_args()

    data = args.data or DEMO_DATA
    work_dir = args.work_dir or Path('work_dirs') / data.resolve().name
    if args.data is None and make_demo_data.make(DEMO_DATA):
        print(f'Made the scenes in {DEMO_DATA}')
    work_dir.mkdir(parents=True, exist_ok=True)
    train, val = find_data(data, work_dir)
    default = CUSTOM_CONFIG if args.data else DEMO_CONFIG
    config = load_config(args.config or default, work_dir=work_dir)
    fill_in(config, train, val)
    config.merge_from_dict(args.cfg_options or {})
    check_same_classes(work_dir, config)

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
