"""Annotation files in COCO format: reading, and what does not fit in them."""

import gc
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

from ddetr_plugin.data_checks.boxes import NUMBER, Report, check_boxes
from ddetr_plugin.data_checks.findings import Finding

__all__ = ['check_annotations', 'is_scored', 'read_annotations']

# Some programs write 1.0, which equals 1 wherever ids are looked up.
ID = (int, float, str)
ENTRIES = {
    'images': dict(id=ID, file_name=str, width=NUMBER, height=NUMBER),
    'annotations': dict(id=ID, image_id=ID, category_id=ID),
    'categories': dict(id=ID, name=str),
}
SINGULAR = dict(images='image', annotations='annotation', categories='category')
# A list of numbers, however deep. No string of JSON can hold the quotes around the key unescaped.
POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[^"{}]*\]')


def read_annotations(path: Path, polygons: bool = True) -> dict:
    """The dict of a COCO-format JSON file.

    Args:
        path: the file.
        polygons: read polygons, too. Without them a file as large as COCO's takes a sixth of the
            time: they are nearly all of its numbers.

    Raises:
        OSError: there is no such file.
        ValueError: it is something else, or an entry lacks what every tool relies on.
    """
    data = path.read_bytes()
    if not polygons:
        data = POLYGONS.sub(b'"segmentation":[]', data)
    # Millions of new objects that are no garbage: looking through them again and again takes
    # longer than reading.
    collecting = gc.isenabled()
    gc.disable()
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ValueError(f'{path} is not JSON: {error}') from None
    except RecursionError:
        raise ValueError(f'{path} is not in COCO format: it is nested too deeply') from None
    finally:
        if collecting:
            gc.enable()
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
        if _all_usable(content[part], fields):
            continue
        for number, entry in enumerate(content[part]):
            for field, kinds in fields.items():
                value = entry.get(field) if isinstance(entry, dict) else entry
                if not isinstance(entry, dict) or not isinstance(value, kinds):
                    raise ValueError(
                        f'{path} is not in COCO format: entry {number} of {part} has no usable '
                        f'{field} (found {value!r}); every one needs {", ".join(fields)}'
                    )
    return content


def _all_usable(entries: list, fields: dict) -> bool:
    """Whether every entry has every field, without a loop in Python over a million of them."""
    try:
        return all(
            issubclass(kind, kinds)
            for field, kinds in fields.items()
            for kind in set(map(type, map(itemgetter(field), entries)))
        )
    except (KeyError, TypeError, IndexError):
        return False


def is_scored(annotation: dict) -> bool:
    """Whether a detection can match the annotation: it has a box, and is no region of a crowd."""
    box = annotation.get('bbox')
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, NUMBER) for v in box)
    return numbers and box[2] > 0 and box[3] > 0 and not annotation.get('iscrowd')


def check_annotations(
    file: Path, content: dict, training: bool, scored: bool = True
) -> list[Finding]:
    """What does not fit in an annotation file, its pictures unseen.

    Args:
        file: where `content` comes from.
        content: as `read_annotations` returns it.
        training: whether it is to be learned from.
        scored: whether detections are to be compared with it, as pycocotools does.
    """
    findings: list[Finding] = []

    def report(level, kind, part, entry_id, detail, remedy):
        findings.append(Finding(level, kind, str(file), part, entry_id, detail, remedy))

    _check_ids(content, scored, report)
    _check_categories(content, training, report)
    _check_images(content, report)
    check_boxes(content, scored, report)
    return findings


def _repeated(values: Iterable) -> list[tuple]:
    return [(value, count) for value, count in Counter(values).items() if count > 1]


def _check_ids(content: dict, scored: bool, report: Report) -> None:
    for key, part in SINGULAR.items():
        ids = set(map(itemgetter('id'), content[key]))
        if len(ids) < len(content[key]):
            for entry_id, count in _repeated(entry['id'] for entry in content[key]):
                report(
                    'error',
                    f'{key} without an id of their own',
                    part,
                    entry_id,
                    f'the id occurs {count} times',
                    'give every entry a unique id',
                )
        texts = [entry_id for entry_id in ids if isinstance(entry_id, str)]
        if 0 < len(texts) < len(ids):
            report(
                'error',
                f'{key} with ids of two kinds',
                part,
                min(texts),
                f'some ids are numbers, others text such as {min(texts)!r}',
                'write all as integers, and what refers to them, too',
            )
    for annotation in content['annotations']:
        # Not (id < 1): NaN must be found, too.
        if type(annotation['id']) not in NUMBER or not annotation['id'] >= 1:
            report(
                'error' if scored else 'warning',
                'annotation ids that are not positive integers',
                'annotation',
                annotation['id'],
                f'the id is {annotation["id"]!r}',
                'number the annotations 1, 2, 3, ...: to pycocotools, a box found with id 0 is a '
                'box missed, and other kinds of ids fail',
            )


def _check_categories(content: dict, training: bool, report: Report) -> None:
    categories = content['categories']
    ids = {category['name']: category['id'] for category in categories}
    for name, count in _repeated(category['name'] for category in categories):
        report(
            'error',
            'class names not unique',
            'category',
            ids[name],
            f'{name!r} occurs {count} times',
            'name every category once',
        )
    numbers = sorted(i for i in ids.values() if isinstance(i, int))
    gaps = [n for n, after in zip(numbers, numbers[1:]) if after > n + 1]
    if gaps:
        report(
            'note',
            'category ids with gaps',
            'category',
            gaps[0],
            f'{len(numbers)} categories have ids from {numbers[0]} to {numbers[-1]}; the first gap '
            f'is after {gaps[0]}',
            'nothing has to be done: labels are 0, 1, 2, ... in the order of the categories. Do '
            'not take ids for labels, nor the largest id for the number of classes',
        )
    if not any(map(is_scored, content['annotations'])):
        report(
            'error',
            'no boxes at all',
            None,
            None,
            'regions of crowds do not count',
            'is this the right file?',
        )
    used = set(map(itemgetter('category_id'), content['annotations']))
    for category in categories if training else ():
        if category['id'] not in used:
            report(
                'warning',
                'classes without boxes to learn from',
                'category',
                category['id'],
                category['name'],
                'annotate some, or remove the category from all annotation files',
            )


def _check_images(content: dict, report: Report) -> None:
    images = content['images']
    ids = {image['file_name']: image['id'] for image in images}
    if len(ids) < len(images):
        for name, count in _repeated(image['file_name'] for image in images):
            report(
                'warning',
                'pictures that are listed more than once',
                'image',
                ids[name],
                f'{name}, {count} times',
                'list it once, with all of its boxes',
            )
    annotated = set(map(itemgetter('image_id'), content['annotations']))
    single = {a['image_id'] for a in content['annotations'] if not a.get('iscrowd')}
    for image in images:
        # Not (x <= 0): NaN must be found, too.
        if not (0 < image['width'] < math.inf and 0 < image['height'] < math.inf):
            report(
                'error',
                'pictures without a size',
                'image',
                image['id'],
                f'{image["file_name"]}, {image["width"]} x {image["height"]}',
                'width and height are pixels of the picture',
            )
        if image['id'] not in annotated:
            report(
                'note',
                'pictures without annotations',
                'image',
                image['id'],
                image['file_name'],
                'they are background, or left out (filter_cfg.filter_empty_gt); annotate them if '
                'there is something on them',
            )
        elif image['id'] not in single:
            report(
                'warning',
                'pictures with regions of crowds alone',
                'image',
                image['id'],
                image['file_name'],
                'nothing on them is learned, and everything else on them is taken for background; '
                'annotate single objects, or remove them',
            )
