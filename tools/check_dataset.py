"""Check a COCO-format folder before training on it.

    python tools/check_dataset.py FOLDER

Finds the annotation files and the pictures, and says in plain words what does not fit. Exit status
1 if something would break or spoil a training. Layouts that are found: annotations/instances_train
(.json, or with a suffix such as 2017) and instances_val, annotations/train.json and val.json,
train/_annotations.coco.json and valid/_annotations.coco.json; pictures in images/, images/train/,
train/, train2017/, beside the annotation file, or in the folder itself.
"""

import argparse
import io
import json
import math
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

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
SHOWN = 5  # findings of a kind that are printed
EXIF_ORIENTATION = 0x0112
EXIF_TURNED = (5, 6, 7, 8)  # orientations with width and height exchanged

NUMBER = (int, float)
ENTRIES = {
    'images': dict(id=(int, str), file_name=str, width=NUMBER, height=NUMBER),
    'annotations': dict(id=(int, str), image_id=(int, str), category_id=(int, str)),
    'categories': dict(id=(int, str), name=str),
}


class Split(NamedTuple):
    """One split: where it is and what its annotation file holds."""

    name: str
    ann_file: Path
    image_folder: Path
    content: dict


class Finding(NamedTuple):
    """Something that does not fit. `kind` groups findings; 'error' stops, 'warning' does not."""

    level: str
    kind: str
    where: str
    remedy: str


def find_split(folder, name):
    """The Split called `name` ('train' or 'val') under `folder`, or None.

    Raises:
        ValueError: its annotation file is not COCO-format JSON.
    """
    for alias in SPLIT_NAMES[name]:
        for pattern in ANNOTATION_FILES:
            for ann_file in sorted(folder.glob(pattern.format(alias))):
                content = read_annotations(ann_file)
                return Split(name, ann_file, find_images(folder, alias, ann_file, content), content)
    return None


def read_annotations(path):
    """The dict of a COCO-format JSON file.

    Raises:
        ValueError: it is something else, or an entry lacks what every tool relies on.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is not JSON: {error}') from None
    missing = set(ENTRIES) - set(content if isinstance(content, dict) else ())
    if missing:
        raise ValueError(
            f'{path} is not in COCO format: it has no {", ".join(sorted(missing))}. A detection '
            'data set has images, annotations and categories'
        )
    for part, fields in ENTRIES.items():
        if not isinstance(content[part], list):
            raise ValueError(
                f'{path} is not in COCO format: {part} is a {type(content[part]).__name__}, not a '
                'list'
            )
        for number, entry in enumerate(content[part]):
            for field, kinds in fields.items():
                value = entry.get(field) if isinstance(entry, dict) else entry
                if not isinstance(entry, dict) or not isinstance(value, kinds):
                    raise ValueError(
                        f'{path} is not in COCO format: entry {number} of {part} has no usable '
                        f'{field} (found {value!r}); every one needs {", ".join(fields)}'
                    )
    return content


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


def check_split(split, scales=SCALES):
    """All findings of one split; `scales` as for `check_folder`."""
    findings = []

    def report(level, kind, where, remedy):
        findings.append(Finding(level, kind, f'{split.ann_file.name}: {where}', remedy))

    content = split.content
    for key in ('images', 'annotations', 'categories'):
        ids = Counter(entry['id'] for entry in content[key])
        for entry_id, count in ids.items():
            if count > 1:
                report(
                    'error',
                    f'{key} without an id of their own',
                    f'id {entry_id}, {count} times',
                    'give every entry a unique id',
                )
        texts = [entry_id for entry_id in ids if isinstance(entry_id, str)]
        if 0 < len(texts) < len(ids):
            report(
                'error',
                f'{key} with ids of two kinds',
                f'some are numbers, others text such as {texts[0]!r}',
                'write all as integers, and what refers to them, too',
            )
    for annotation in content['annotations']:
        if type(annotation['id']) is not int or annotation['id'] < 1:
            report(
                'error',
                'annotation ids that are not positive integers',
                f'annotation id {annotation["id"]!r}',
                'number the annotations 1, 2, 3, ...: to pycocotools, a box found with id 0 is a '
                'box missed, and other kinds of ids fail',
            )
    names = Counter(category['name'] for category in content['categories'])
    for name, count in names.items():
        if count > 1:
            report('error', 'class names not unique', f'{name!r}', 'name every category once')
    if not any(map(is_scored, content['annotations'])):
        report(
            'error',
            'no boxes at all',
            f'{split.ann_file} (regions of crowds do not count)',
            'is this the right file?',
        )
    used = {annotation['category_id'] for annotation in content['annotations']}
    for category in content['categories'] if split.name == 'train' else ():
        if category['id'] not in used:
            report(
                'warning',
                'classes without boxes to learn from',
                category['name'],
                'annotate some, or remove the category from all annotation files',
            )
    for name, count in Counter(image['file_name'] for image in content['images']).items():
        if count > 1:
            report(
                'warning',
                'pictures that are listed more than once',
                f'{name}, {count} times',
                'list it once, with all of its boxes',
            )
    images = {image['id']: image for image in content['images']}
    check_boxes(content, images, report)
    check_pictures(split, report, scales)
    return findings


def is_scored(annotation):
    """Whether a detection can match the annotation: it has a box, and is no region of a crowd."""
    box = annotation.get('bbox')
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, NUMBER) for v in box)
    return numbers and box[2] > 0 and box[3] > 0 and not annotation.get('iscrowd')


def check_boxes(content, images, report):
    """Reports annotations that cannot be used, or that look wrong."""
    categories = {category['id'] for category in content['categories']}
    outside = fit_as_corners = 0
    for annotation in content['annotations']:
        where = f'annotation {annotation["id"]}'
        image = images.get(annotation['image_id'])
        if image is None:
            report(
                'error',
                'annotations of unknown pictures',
                f'{where}, image_id {annotation["image_id"]}',
                'add the picture to images, or remove the annotation',
            )
            continue
        where += f', {image["file_name"]}'
        if annotation['category_id'] not in categories:
            report(
                'error',
                'annotations of unknown classes',
                f'{where}, category_id {annotation["category_id"]}',
                'add it to categories, or correct the annotation',
            )
        missing = [
            key for key in ('area', 'iscrowd') if not isinstance(annotation.get(key), NUMBER)
        ]
        if missing:
            report(
                'error',
                'annotations without area or iscrowd',
                f'{where}, has no number for {", ".join(missing)}',
                'pycocotools needs both: area = width * height, iscrowd = 0',
            )
        box = annotation.get('bbox')
        numbers = isinstance(box, list) and len(box) == 4
        numbers = numbers and all(isinstance(v, NUMBER) and math.isfinite(v) for v in box)
        if not numbers:
            report(
                'error',
                'boxes that are not four finite numbers',
                f'{where}, bbox {box}',
                'bbox is [x, y, width, height] in pixels',
            )
            continue
        x, y, width, height = box
        if width <= 0 or height <= 0:
            report(
                'warning',
                'boxes without area',
                f'{where}, bbox {box}',
                'they are left out of the training; correct or remove them',
            )
        elif 'area' not in missing and annotation['area'] <= 0:
            report(
                'warning',
                'annotations whose area is not positive',
                f'{where}, bbox {box}, area {annotation["area"]}',
                'they are left out of the training; area = width * height',
            )
        image_width, image_height = image['width'], image['height']
        if x < -1 or y < -1 or x + width > image_width + 1 or y + height > image_height + 1:
            outside += 1
            fit_as_corners += x < width <= image_width + 1 and y < height <= image_height + 1
            report(
                'warning',
                'boxes that leave their picture',
                f'{where}, bbox {box}, picture {image_width} x {image_height}',
                'clip them to the picture',
            )
    if outside > 0.2 * len(content['annotations']) and fit_as_corners > 0.9 * outside:
        report(
            'error',
            'boxes look like [x1, y1, x2, y2]',
            f'{outside} boxes leave their pictures as [x, y, width, height]',
            'COCO format is [x, y, width, height]: subtract x1, y1 from x2, y2',
        )


def check_pictures(split, report, scales):
    """Reports pictures that are missing, broken, or of another size than the annotations say."""
    # Decoding is what takes time, and happens outside of Python.
    with ThreadPoolExecutor() as pool:
        for found in pool.map(
            lambda image: check_picture(split, image, scales), split.content['images']
        ):
            if found:
                report(*found)


def check_picture(split, image, scales):
    """What is wrong with one picture: the arguments of a report, or None."""
    path = split.image_folder / image['file_name']
    if not path.is_file():
        remedy = f'put it there, or remove picture {image["id"]} from the annotations'
        return 'error', 'missing pictures', str(path), remedy
    try:
        content = path.read_bytes()
        # OpenCV fills what is missing of a truncated file with grey; Pillow refuses it.
        with Image.open(io.BytesIO(content)) as picture:
            size = picture.size
            orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
            picture.load()
        # As trainings do.
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, cv2.error) as error:
        reason = ' '.join(str(error).split())
        return 'error', 'broken pictures', f'{path}: {reason}', 'replace or remove it'
    if decoded is None:
        return (
            'error',
            'pictures that OpenCV cannot read',
            f'{path}: {picture.format}, mode {picture.mode}',
            'save it as PNG or JPEG with 8 bits per channel',
        )
    # Loading for a training turns pictures upright; boxes drawn without that do not fit.
    size = size[::-1] if orientation in EXIF_TURNED else size
    stated = (image['width'], image['height'])
    if size != stated and size[::-1] == stated and orientation in EXIF_TURNED:
        return (
            'error',
            'pictures that are turned when loaded',
            f'{path}: EXIF orientation {orientation}, upright {size[0]} x {size[1]}, '
            f'annotations say {stated[0]} x {stated[1]}',
            'save it without the EXIF orientation, or turn its boxes with it',
        )
    if size != stated:
        return (
            'error',
            'pictures of another size than stated',
            f'{path}: is {size[0]} x {size[1]}, annotations say {stated[0]} x {stated[1]}',
            'correct width and height (and the boxes, if they belong to the stated size)',
        )
    for scale in scales:
        if 0 in rescale_size(size, scale):
            return (
                'error',
                'pictures that are too thin',
                f'{path}: of {size[0]} x {size[1]} nothing is left when it is made to fit '
                f'{scale[0]} x {scale[1]}',
                'cut it into several, or remove it',
            )
    return None


def rescale_size(size, scale):
    """Width and height after a resize that keeps the ratio, as mmcv calculates them.

    Args:
        size: width and height.
        scale: what neither the longer nor the shorter side may exceed: two numbers in any order.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return tuple(int(side * factor + 0.5) for side in size)


def check_classes(train, val):
    """Findings about class lists that differ between the splits.

    mmdet numbers classes by their order in each file, so that the order matters, too.
    """
    classes = [[c['name'] for c in split.content['categories']] for split in (train, val)]
    if classes[0] == classes[1]:
        return []
    only = [sorted(set(a) - set(b)) for a, b in (classes, classes[::-1])]
    where = f'only in {train.name}: {only[0]}; only in {val.name}: {only[1]}'
    if not any(only):
        where = 'the same classes in another order'
    remedy = 'write the same categories, in the same order, into both files'
    return [Finding('error', 'classes of the splits differ', where, remedy)]


def check_overlap(train, val):
    """Findings about pictures that are in both splits."""
    files = [{s.image_folder / i['file_name'] for i in s.content['images']} for s in (train, val)]
    return [
        Finding(
            'warning',
            'pictures in both train and val',
            str(path),
            'remove it from one of them: what was trained on says nothing about new pictures',
        )
        for path in sorted(files[0] & files[1])
    ]


def check_folder(folder, scales=SCALES):
    """Finds and checks the splits of a data set.

    Args:
        folder: of the data set.
        scales: (width, height) pairs that pictures are resized to, their ratio kept.

    Returns:
        (train Split, val Split or None, list of Findings).

    Raises:
        FileNotFoundError: no folder, or no annotations of a training split in it.
        ValueError: an annotation file is not in COCO format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is not a folder')
    train, val = (find_split(folder, name) for name in ('train', 'val'))
    if train is None:
        raise FileNotFoundError(
            f'{folder} has no training annotations; expected annotations/instances_train.json '
            f'(or one of {", ".join(p.format("train") for p in ANNOTATION_FILES[1:])})'
        )
    findings = check_split(train, scales)
    if val is not None:
        findings += check_split(val, scales) + check_classes(train, val) + check_overlap(train, val)
    return train, val, findings


def print_findings(findings):
    """Prints findings by kind, and returns whether one of them is an error."""
    kinds = {}
    for finding in findings:
        kinds.setdefault((finding.level, finding.kind), []).append(finding)
    for (level, kind), group in sorted(kinds.items()):
        print(f'{level}: {kind} ({len(group)})')
        for finding in group[:SHOWN]:
            print(f'    {finding.where}')
        if len(group) > SHOWN:
            print(f'    ... and {len(group) - SHOWN} more')
        print(f'    what to do: {group[0].remedy}')
    return any(finding.level == 'error' for finding in findings)


def describe(split):
    """One line about a split."""
    content = split.content
    return (
        f'{split.name}: {len(content["images"])} pictures in {split.image_folder}, '
        f'{len(content["annotations"])} boxes, {len(content["categories"])} classes'
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', help='data set in COCO format')
    args = parser.parse_args()
    try:
        train, val, findings = check_folder(args.folder)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(describe(train))
    print(describe(val) if val else 'val: none; tools/demo.py takes a fifth of train instead')
    if print_findings(findings):
        sys.exit(1)
    print('nothing stands in the way of a training')


if __name__ == '__main__':
    main()
