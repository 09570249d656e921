"""Check a COCO-format data set before training on it.

    python tools/check_dataset.py FOLDER [--config CONFIG] [--json REPORT]
    python tools/check_dataset.py --config CONFIG [--json REPORT]

Finds the annotation files and the pictures, and says in plain words what does not fit. With a
config, its class names are compared, too; without a folder, the data is what the config names, of
boxes or of panoptic segments.
Layouts of a folder that are found: annotations/instances_train (.json, or with a suffix such as
2017) and instances_val, annotations/train.json and val.json, train/_annotations.coco.json and
valid/_annotations.coco.json; pictures in images/, images/train/, train/, train2017/, beside the
annotation file, or in the folder itself.

Every finding has a file, an id and a remedy; REPORT lists them all. Exit status: 0 if nothing
stands in the way of a training, warnings or not; 1 if something would break or spoil it; 2 if there
is no data set to check.
"""

import argparse
import sys
from pathlib import Path

# Before anything imports mmdet: makes mmdet importable where mmcv has no compiled extension.
import ddetr_plugin  # noqa: F401
from ddetr_plugin.data_checks import (
    BOX_FORMS,
    SHOWN,
    Split,
    check_capacity,
    check_class_names,
    check_config,
    check_split,
    check_splits,
    config_scales,
    has_checked_data,
    is_scored,
    print_findings,
    read_annotations,
    to_pixels,
    write_report,
)
from ddetr_plugin.engine.foreign_checkpoints import dataset_classes
from ddetr_plugin.engine.launch import load_config

__all__ = [
    'SHOWN',
    'Split',
    'check_folder',
    'config_scales',
    'describe',
    'find_split',
    'is_scored',
    'print_findings',
]

ANNOTATION_FILES = (
    'annotations/instances_{}.json',
    'annotations/instances_{}[0-9]*.json',
    'annotations/{}.json',
    '{}/_annotations.coco.json',
    'instances_{}.json',
    '{}.json',
)
SPLIT_NAMES = {'train': ('train',), 'val': ('val', 'valid', 'validation', 'test')}
SCALES = ((320, 320),)  # the smallest that configs/*_custom.py resizes to


def find_split(folder, name, boxes='pixels'):
    """The Split called `name` ('train' or 'val') under `folder`, or None.

    Raises:
        ValueError: its annotation file is not COCO-format JSON.
    """
    for alias in SPLIT_NAMES[name]:
        for pattern in ANNOTATION_FILES:
            for ann_file in sorted(folder.glob(pattern.format(alias))):
                content = read_annotations(ann_file)
                content = content if boxes == 'pixels' else to_pixels(content, boxes)
                return Split(name, ann_file, find_images(folder, alias, ann_file, content), content)
    return None


def find_images(folder, alias, ann_file, content):
    """The folder that holds the first pictures of the split; the likeliest if none does."""
    candidates = [
        folder / 'images',
        folder / 'images' / alias,
        folder / alias,
        folder / f'{alias}2017',
        ann_file.parent,
        folder,
    ]
    names = [image['file_name'] for image in content['images'][:20]]
    return max(candidates, key=lambda c: sum((c / name).is_file() for name in names))


def check_folder(folder, scales=SCALES, boxes='pixels'):
    """Finds and checks the splits of a data set.

    Args:
        folder: of the data set.
        scales: (width, height) pairs that pictures are resized to, their ratio kept.
        boxes: what their numbers are: 'pixels', or a key of `BOX_FORMS`.

    Returns:
        (train Split, val Split or None, list of Findings).

    Raises:
        FileNotFoundError: no folder, or no annotations of a training split in it.
        ValueError: an annotation file is not in COCO format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is not a folder')
    train, val = (find_split(folder, name, boxes) for name in ('train', 'val'))
    if train is None:
        raise FileNotFoundError(
            f'{folder} has no training annotations; expected annotations/instances_train.json '
            f'(or one of {", ".join(p.format("train") for p in ANNOTATION_FILES[1:])})'
        )
    # Without validation data, tools/demo.py takes some of the training's.
    findings = check_split(train, scales, scored=val is None)
    if val is not None:
        findings += check_split(val, scales) + check_splits(train, val)
    return train, val, findings


def check_model(model, train, val=None):
    """The Findings about splits of a folder that a config's `model` is too small for."""
    return [
        finding
        for split in (train, val)
        if split is not None
        for finding in check_capacity(
            model, split.ann_file, split.content, None, split is val or val is None
        )
    ]


def describe(split):
    """One line about a split."""
    content = split.content
    there = '' if split.image_folder.is_dir() else ', which does not exist'
    return (
        f'{split.name}: {len(content["images"])} pictures in {split.image_folder}{there}, '
        f'{len(content["annotations"])} boxes, {len(content["categories"])} classes'
    )


def add_box_forms(parser):
    """Adds --boxes: what the numbers of a folder's boxes are."""
    parser.add_argument(
        '--boxes',
        choices=('pixels', *BOX_FORMS),
        default='pixels',
        help='what the four numbers of a box are: x, y, width, height in pixels, the same as '
        'shares of the image (normalised), or its corners or centre and size as such shares',
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('folder', nargs='?', help='data set in COCO format')
    parser.add_argument('--config', help='config to train it with')
    parser.add_argument('--json', metavar='REPORT', type=Path, help='write all findings here')
    add_box_forms(parser)
    args = parser.parse_args(arguments)
    if not args.folder and not args.config:
        parser.error('name a folder, a config with --config, or both')
    try:
        config = load_config(args.config) if args.config else {}
        if args.folder:
            scales = config_scales(config) or SCALES
            train, val, findings = check_folder(args.folder, scales, args.boxes)
            classes = dataset_classes(config)
            for split in (train, val):
                if split is not None and classes is not None:
                    findings += check_class_names(split, classes)
            findings += check_model(config.get('model') or {}, train, val)
            print(describe(train))
            print(describe(val) if val else 'val: none; tools/demo.py takes a fifth of it instead')
        else:
            findings = check_config(config, decode=True)
        if args.json:
            write_report(args.json, findings, dict(folder=args.folder, config=args.config))
    except (OSError, ValueError) as error:
        parser.exit(2, f'error: {error}\n')
    if print_findings(findings):
        sys.exit(1)
    if not args.folder and not has_checked_data(config):
        parser.exit(2, f'error: nothing was checked: {args.config} names no data to look into\n')
    print('nothing stands in the way of a training')


if __name__ == '__main__':
    main()
