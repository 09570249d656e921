"""What does not fit in images and categories, of whichever kind the annotations are."""

import math
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

from ddetr_plugin.data_checks.boxes import NUMBER, Report
from ddetr_plugin.data_checks.findings import Finding
from ddetr_plugin.data_checks.marks import CROWD_REMEDY

__all__ = [
    'check_categories',
    'check_ids',
    'check_images',
    'check_use',
    'is_scored',
    'repeated',
    'reporter',
]

SINGULAR = dict(images='image', annotations='annotation', categories='category')


def reporter(file: Path, findings: list[Finding]) -> Report:
    """A function that appends what it is given to `findings`, as about `file`."""

    def report(level, kind, part, entry_id, detail, remedy):
        findings.append(Finding(level, kind, str(file), part, entry_id, detail, remedy))

    return report


def repeated(values: Iterable) -> list[tuple]:
    """(value, count) of those that occur more than once."""
    return [(value, count) for value, count in Counter(values).items() if count > 1]


def is_scored(annotation: dict) -> bool:
    """Whether it is learned, and scored: it has a box and an area, is no crowd, and not ignored."""
    if annotation.get('iscrowd') or annotation.get('ignore'):
        return False
    area = annotation.get('area')
    if isinstance(area, NUMBER) and area <= 0:
        return False
    box = annotation.get('bbox')
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(isinstance(v, NUMBER) for v in box) and box[2] > 0 and box[3] > 0


def check_ids(content: dict, keys: Iterable[str], report: Report) -> None:
    """Reports ids that several entries share, and ids of two kinds, in lists of the file.

    Args:
        content: as `read_annotations` returns it.
        keys: of the lists in it.
        report: called with level, kind, part, id, detail and remedy of every `Finding`.
    """
    for key in keys:
        part = SINGULAR[key]
        ids = set(map(itemgetter('id'), content[key]))
        if len(ids) < len(content[key]):
            for entry_id, count in repeated(entry['id'] for entry in content[key]):
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


def check_categories(categories: list[dict], report: Report) -> None:
    """Reports names that are not unique, and gaps in the ids; `report` as in `check_ids`."""
    ids = {category['name']: category['id'] for category in categories}
    for name, count in repeated(category['name'] for category in categories):
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


def check_use(
    categories: list[dict], regions: list[dict], noun: str, training: bool, report: Report
) -> None:
    """Reports that there is nothing to learn or score, in all or of a class.

    Args:
        categories: entries of the file.
        regions: what is annotated, each with a `category_id`.
        noun: what they are called.
        training: whether they are to be learned from.
        report: as in `check_ids`.
    """
    if not any(map(is_scored, regions)):
        _report_nothing(regions, noun, report)
    used = {
        region['category_id']
        for region in regions
        if not (region.get('iscrowd') or region.get('ignore'))
    }
    for category in categories if training else ():
        if category['id'] not in used:
            report(
                'warning',
                f'classes without {noun} to learn from',
                'category',
                category['id'],
                category['name'],
                'annotate some, or remove the category from all annotation files',
            )


def _report_nothing(regions: list[dict], noun: str, report: Report) -> None:
    """Says why none of the regions can be learned."""
    crowds = sum(bool(region.get('iscrowd')) for region in regions)
    others = [region for region in regions if not region.get('iscrowd')]
    ignored = sum(bool(region.get('ignore')) for region in others)
    without = sum(not region.get('bbox') and not region.get('ignore') for region in others)
    if regions and crowds == len(regions):
        kind = f'no {noun} but regions of crowds'
        detail = f'all {crowds} have iscrowd 1: nothing is learned, and nothing scored'
        report('error', kind, None, None, detail, CROWD_REMEDY)
        return
    reasons = {
        'are regions of crowds, which do not count': crowds,
        'have ignore 1, and do not count either': ignored,
        'have no bbox': without,
        'have a bbox that is not four numbers, or without area': len(others) - ignored - without,
    }
    detail = ', '.join(f'{count} {reason}' for reason, count in reasons.items() if count)
    remedy = 'correct them, see what is said about them' if regions else 'is this the right file?'
    report('error', f'no {noun} at all', None, None, detail or 'annotations is empty', remedy)


def check_images(images: list[dict], annotated: set, single: set, report: Report) -> None:
    """Reports pictures listed twice, without a size, without annotations or with crowds alone.

    Args:
        images: entries of the file.
        annotated: ids of those with annotations.
        single: ids of those with annotations that are no regions of crowds.
        report: as in `check_ids`.
    """
    ids = {image['file_name']: image['id'] for image in images}
    if len(ids) < len(images):
        for name, count in repeated(image['file_name'] for image in images):
            report(
                'warning',
                'pictures that are listed more than once',
                'image',
                ids[name],
                f'{name}, {count} times',
                'list it once, with everything that is annotated on it',
            )
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
