"""Check a data set before training on it.

    python tools/check_dataset.py FOLDER [--config CONFIG] [--json REPORT] [--write OUT]
    python tools/check_dataset.py --config CONFIG [--json REPORT]

Reads a folder as annotation tools export it (COCO's JSON under any name, YOLO, Pascal VOC or
LabelMe), finds the images, and says in plain words what does not fit. FOLDER may also be one
annotation file in COCO format. What has to be changed for a training, such as ids, is listed; OUT
gets the result in COCO format, and FOLDER stays as it is. With a config, its class names are
compared, too; without a folder, the data is what the config names, boxes or panoptic segments.

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
    to_pixels,
    write_report,
)
from ddetr_plugin.datasets.class_names import dataset_classes
from ddetr_plugin.engine.launch import load_config
from ddetr_plugin.intake import read_folder

__all__ = [
    'SHOWN',
    'Split',
    'check_data',
    'check_folder',
    'config_scales',
    'describe',
    'is_scored',
    'print_changes',
    'print_findings',
    'read_data',
]

SCALES = ((320, 320),)  # the smallest that configs/demo/own_images.py resizes to


def read_data(folder, keep_super_classes=False, boxes='pixels'):
    """The DataFolder of a data set.

    Args:
        folder, keep_super_classes: see `read_folder`.
        boxes: what the numbers of boxes are, 'pixels' or a key of BOX_FORMS.

    Raises:
        As `read_folder`; ValueError: the boxes are of another form.
    """
    data = read_folder(folder, keep_super_classes)
    if boxes == 'pixels':
        return data
    return data.convert(lambda content: to_pixels(content, boxes), f'{boxes} boxes became pixels')


def check_folder(folder, scales=SCALES, boxes='pixels'):
    """Finds and checks the splits of a data set.

    Args:
        folder: of the data set.
        scales: (width, height) pairs that pictures are resized to, their ratio kept.
        boxes: what their numbers are: 'pixels', or a key of `BOX_FORMS`.

    Returns:
        (train Split, val Split or None, list of Findings).

    Raises:
        As `read_folder`.
    """
    data = read_data(folder, boxes=boxes)
    return data.train, data.val, check_data(data, scales)


def check_data(data, scales=SCALES):
    """All findings of a DataFolder; `scales` as `check_folder`."""
    train, val = data.train, data.val
    # Without validation data, tools/demo.py takes some of the training's.
    findings = data.findings + check_split(train, scales, scored=val is None)
    if val is not None:
        findings += check_split(val, scales) + check_splits(train, val)
    return findings


def print_changes(data):
    """Prints what a DataFolder was read from, and what had to be changed."""
    print(f'Read as {data.format}: {"; ".join(data.notes)}')
    if data.changes:
        print('Changed on reading (the files stay as they are):')
        print('\n'.join(f'    {line}' for line in data.changes.lines()))


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
    parser.add_argument('folder', nargs='?', help='data set, or one annotation file')
    parser.add_argument('--config', help='config to train it with')
    parser.add_argument('--json', metavar='REPORT', type=Path, help='write all findings here')
    add_box_forms(parser)
    parser.add_argument(
        '--write', metavar='OUT', type=Path, help='write the data in COCO format into this folder'
    )
    parser.add_argument(
        '--keep-super-classes',
        action='store_true',
        help='keep classes that no box uses and that others name as their supercategory',
    )
    args = parser.parse_args(arguments)
    if not args.folder and not args.config:
        parser.error('name a folder, a config with --config, or both')
    if args.write and not args.folder:
        parser.error('--write needs a folder to read')
    try:
        config = load_config(args.config) if args.config else {}
        if args.folder:
            scales = config_scales(config) or SCALES
            data = read_data(args.folder, args.keep_super_classes, args.boxes)
            print_changes(data)
            if args.write:
                data = data.place(args.write)
                data.write(args.write)
            train, val = data.train, data.val
            findings = check_data(data, scales)
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
