"""What does not fit in the boxes of an annotation file."""

import math
from collections.abc import Callable, Iterable

from ddetr_plugin.data_checks.box_forms import (
    NUMBER,
    CornerEvidence,
    is_box,
    normalised_form,
)

__all__ = [
    'NUMBER',
    'Report',
    'check_boxes',
    'is_box',
    'report_unknown_class',
    'report_unknown_picture',
]

MASKS = ('segmentation', 'keypoints')  # keys that a box can be computed of
TYPES = {str: 'text', int: 'an integer'}
# What boxes of other forms are, and how they become COCO's.
IN_WORDS = {
    'normalised': (
        '[x, y, width, height] as shares of the image',
        'multiply x and width by the width of the image, y and height by its height',
    ),
    'normalised-xyxy': (
        '[x1, y1, x2, y2] as shares of the image',
        'subtract x1, y1 from x2, y2, and multiply by width and height',
    ),
    'normalised-cxcywh': (
        '[centre x, centre y, width, height] as shares of the image',
        'subtract half the sides from the centre, and multiply by width and height',
    ),
}

Report = Callable[..., None]


def check_boxes(content: dict, scored: bool, report: Report) -> None:
    """Reports annotations that cannot be used, or that look wrong.

    Args:
        content: as `read_annotations` returns it.
        scored: whether detections are to be compared with it, as pycocotools does.
        report: called with level, kind, part, id, detail and remedy of every `Finding`.
    """
    categories = {category['id'] for category in content['categories']}
    images = {image['id']: image for image in content['images']}
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    corners = CornerEvidence()
    form = normalised_form(content)
    if form is not None:
        _report_normalised(form, content['annotations'], report)
    for annotation in content['annotations']:
        # A million boxes are looked through in a second where nothing is wrong with them.
        try:
            x, y, width, height = annotation['bbox']
            image_width, image_height = sizes[annotation['image_id']]
            fits = (
                x >= 0
                and y >= 0
                and 1 <= width <= image_width - x
                and 1 <= height <= image_height - y
                and 0 < annotation['area'] < math.inf
                and annotation['iscrowd'] >= 0
                and annotation['category_id'] in categories
            )
        except (KeyError, TypeError, ValueError):
            fits = False
        if fits:
            # A box at the picture's left or upper border says nothing.
            if x > 2 and y > 2:
                corners.apart += 1
                corners.ordered += width > x and height > y
        else:
            _check_box(annotation, images, categories, corners, scored, form is None, report)
    if form is None:
        corners.report(len(content['annotations']), report)


def _report_normalised(form: str, annotations: list[dict], report: Report) -> None:
    count = sum(is_box(annotation.get('bbox')) for annotation in annotations)
    example = next(a['bbox'] for a in annotations if is_box(a.get('bbox')))
    words, remedy = IN_WORDS[form]
    report(
        'error',
        'boxes that are normalised to 0..1',
        None,
        None,
        f'nearly all of {count} boxes are within 0..1, such as {example}; they look like {words}',
        f'COCO format is [x, y, width, height] in pixels: read them by --boxes {form}, or {remedy}',
    )


def _check_box(
    annotation: dict,
    images: dict,
    categories: set,
    corners: CornerEvidence,
    scored: bool,
    in_pixels: bool,
    report: Report,
) -> None:
    image = images.get(annotation['image_id'])
    if image is None:
        report_unknown_picture(annotation['id'], annotation['image_id'], images, report)
        return
    if annotation['category_id'] not in categories:
        report_unknown_class(annotation, image['file_name'], categories, report)
    area, crowd = annotation.get('area'), annotation.get('iscrowd')
    if not isinstance(area, NUMBER) or not isinstance(crowd, NUMBER):
        numbers = dict(area=area, iscrowd=crowd)
        missing = [key for key, value in numbers.items() if not isinstance(value, NUMBER)]
        # A training needs the area, and takes for single objects what says nothing about crowds.
        harmless = not scored and missing == ['iscrowd'] and crowd is None
        report(
            'warning' if harmless else 'error',
            'annotations without area or iscrowd',
            'annotation',
            annotation['id'],
            f'{image["file_name"]}, has no number for {", ".join(missing)}',
            'pycocotools needs both: area = width * height, iscrowd = 0',
        )
        area = area if isinstance(area, NUMBER) else 1
    if not math.isfinite(area):
        report(
            'error' if scored else 'warning',
            'areas that are not finite',
            'annotation',
            annotation['id'],
            f'{image["file_name"]}, area {area}',
            'no validation can count it: area = width * height',
        )
        area = 1
    box = annotation.get('bbox')
    if not is_box(box):
        kind, detail, remedy = _no_box(annotation)
        detail = f'{image["file_name"]}, {detail}'
        report('error', kind, 'annotation', annotation['id'], detail, remedy)
        return
    if not in_pixels:
        return
    corners.see(box, image['width'], image['height'])
    fault = _fault(box, area, image['width'], image['height'])
    if fault:
        kind, remedy = fault
        report(
            'warning',
            kind,
            'annotation',
            annotation['id'],
            f'{image["file_name"]}, bbox {box}, area {area}, picture {image["width"]} x '
            f'{image["height"]}',
            remedy,
        )


def _no_box(annotation: dict) -> tuple[str, str, str]:
    """Kind, detail and remedy of an annotation whose box is not four finite numbers."""
    box = annotation.get('bbox')
    masks = [key for key in MASKS if annotation.get(key)]
    if not box and masks:
        return (
            'annotations with a mask, but no box',
            f'has {" and ".join(masks)}, but no bbox',
            'write the bbox around it, [x, y, width, height] in pixels: the training needs boxes',
        )
    if isinstance(box, list) and len(box) == 5:
        return (
            'boxes of five numbers',
            f'bbox {box}',
            'boxes are upright: write [x, y, width, height] around the rotated one, without angle',
        )
    return (
        'boxes that are not four finite numbers',
        f'bbox {box}',
        'bbox is [x, y, width, height] in pixels',
    )


def report_unknown_picture(annotation_id, image_id, known: Iterable, report: Report) -> None:
    """Reports an annotation of a picture that is not among the `known` ids."""
    kind = 'annotations of unknown pictures'
    other = _of_another_type(image_id, known)
    detail = f'image_id {_with_type(image_id, other)}'
    remedy = 'add the picture to images, or remove the annotation'
    if other is not None:
        detail += f', but the image has the id {_with_type(other, other)}'
        remedy = 'write ids as integers, in images and annotations alike'
    report('error', kind, 'annotation', annotation_id, detail, remedy)


def report_unknown_class(
    region: dict, name: str | None, known: Iterable, report: Report, noun: str = 'annotation'
) -> None:
    """Reports a region on the image `name` whose `category_id` is not among the `known` ids."""
    class_id = region['category_id']
    other = _of_another_type(class_id, known)
    detail = f'{name}, category_id {_with_type(class_id, other)}'
    remedy = f'add it to categories, or correct the {noun}'
    if other is not None:
        detail += f', but categories has the id {_with_type(other, other)}'
        remedy = f'write ids as integers, in categories and {noun}s alike'
    report('error', f'{noun}s of unknown classes', noun, region['id'], detail, remedy)


def _of_another_type(value, known: Iterable):
    """The id that differs from `value` in its type alone; None without one."""
    return next((other for other in known if str(other) == str(value)), None)


def _with_type(value, other) -> str:
    """A value, with its type where it matters."""
    return str(value) if other is None else f'{value!r} ({TYPES.get(type(value), "a number")})'


def _fault(box: list, area: float, image_width: float, image_height: float) -> tuple | None:
    """Kind and remedy of what is wrong with a box of four finite numbers; None if it is right."""
    x, y, width, height = box
    right, bottom = x + width, y + height
    left_out = 'they are neither trained nor scored; '
    if width <= 0 or height <= 0:
        return 'boxes without area', f'{left_out}correct or remove them'
    if not area > 0:
        return 'annotations whose area is not positive', f'{left_out}area = width * height'
    if x >= image_width or y >= image_height or right <= 0 or bottom <= 0:
        return 'boxes outside their picture', f'{left_out}correct or remove them'
    if width < 1 or height < 1:
        return 'boxes thinner than a pixel', f'{left_out}correct or remove them'
    # Half a pixel of rounding on either side.
    if x < -1 or y < -1 or right > image_width + 1 or bottom > image_height + 1:
        return 'boxes that leave their picture', 'clip them to the picture'
    return None
