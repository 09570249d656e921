"""Boxes of other forms than COCO's [x, y, width, height] in pixels: recognised, and converted."""

import math
from collections.abc import Callable
from itertools import islice
from typing import TypeGuard

__all__ = ['BOX_FORMS', 'NUMBER', 'CornerEvidence', 'is_box', 'normalised_form', 'to_pixels']

NUMBER = (int, float)
# Shares of boxes from which on they look like corners.
LEAVING, FITTING, LIKELY_CORNERS, FEW = 0.2, 0.9, 0.98, 20
# The share of boxes in 0..1 from which on they are normalised, and what rounding adds to 1.
NORMALISED, ROUNDING = 0.9, 0.01
GLANCE = 100  # boxes that are looked at before all are

# Normalised boxes (a, b, c, d) as [x, y, width, height], in the order in which they are guessed.
BOX_FORMS: dict[str, Callable] = {
    'normalised': lambda a, b, c, d: (a, b, c, d),
    'normalised-xyxy': lambda a, b, c, d: (a, b, c - a, d - b),
    'normalised-cxcywh': lambda a, b, c, d: (a - c / 2, b - d / 2, c, d),
}


def is_box(box) -> TypeGuard[list[float]]:
    """Whether it is a list of four finite numbers."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, NUMBER) and math.isfinite(value) for value in box)
    )


def normalised_form(content: dict) -> str | None:
    """The key of `BOX_FORMS` that boxes look like which are shares of their image's sides.

    None if they look like pixels: fewer than nine of ten are within 0..1, or all are of integers.

    Args:
        content: as `read_annotations` returns it.
    """
    annotations = content['annotations']
    if not _mostly_shares(islice(annotations, GLANCE)) or not _mostly_shares(annotations):
        return None
    boxes = [a['bbox'] for a in annotations if _is_share(a.get('bbox'))]
    large = all(min(image['width'], image['height']) > 2 for image in content['images'])
    if not large or all(value % 1 == 0 for box in boxes for value in box):
        return None

    def fitting(form):
        return sum(_is_inside(*BOX_FORMS[form](*box)) for box in boxes)

    # Of equally many the first.
    return max(BOX_FORMS, key=fitting)


def _mostly_shares(annotations) -> bool:
    known = [_is_share(a['bbox']) for a in annotations if is_box(a.get('bbox'))]
    return bool(known) and sum(known) >= NORMALISED * len(known)


def _is_share(box) -> bool:
    return is_box(box) and min(box) >= -ROUNDING and max(box) <= 1 + ROUNDING


def _is_inside(x: float, y: float, width: float, height: float) -> bool:
    return (
        width > 0
        and height > 0
        and min(x, y) >= -ROUNDING
        and max(x + width, y + height) <= 1 + ROUNDING
    )


def to_pixels(content: dict, form: str) -> dict:
    """The content with normalised boxes, and polygons, made into COCO's pixels.

    Areas within a box are shares of the image and become pixels, too. Others up to 1, as a count of
    pixels or a product of corners gives for shares, become those of their boxes; larger ones stay.

    Args:
        content: as `read_annotations` returns it; left alone.
        form: key of `BOX_FORMS` that all boxes have.

    Raises:
        ValueError: a box is not within its image so: it is of another form.
    """
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    annotations = []
    for annotation in content['annotations']:
        box, size = annotation.get('bbox'), sizes.get(annotation['image_id'])
        # What cannot be converted stays for the checks to find.
        if not is_box(box) or size is None:
            annotations.append(annotation)
            continue
        x, y, width, height = BOX_FORMS[form](*box)
        if not _is_inside(x, y, width, height) and width > 0 and height > 0:
            raise ValueError(
                f'annotation {annotation["id"]!r} has bbox {box}, which is no {form} box within '
                f'its image; --boxes has the forms pixels, {", ".join(BOX_FORMS)}'
            )
        columns, rows = size
        changes = dict(bbox=[x * columns, y * rows, width * columns, height * rows])
        area = annotation.get('area')
        if isinstance(area, NUMBER) and area <= 1:
            within = 0 < area <= width * height * (1 + ROUNDING)
            changes['area'] = (area if within else width * height) * columns * rows
        polygons = annotation.get('segmentation')
        if isinstance(polygons, list) and all(_is_polygon_of_shares(p) for p in polygons):
            changes['segmentation'] = [
                [value * size[i % 2] for i, value in enumerate(polygon)] for polygon in polygons
            ]
        annotations.append(dict(annotation, **changes))
    return dict(content, annotations=annotations)


def _is_polygon_of_shares(polygon) -> bool:
    return isinstance(polygon, list) and all(
        isinstance(value, NUMBER) and -ROUNDING <= value <= 1 + ROUNDING for value in polygon
    )


class CornerEvidence:
    """Whether boxes look like corners in pixels, [x1, y1, x2, y2], as a whole."""

    def __init__(self):
        self.leaving = 0  # boxes that leave their pictures, and of these:
        self.fitting = 0  # those that would not, were they corners
        self.apart = 0  # boxes away from the left and upper border, and of these:
        self.ordered = 0  # those that could be corners

    def see(self, box: list, image_width: float, image_height: float) -> None:
        """Counts a box of four finite numbers."""
        x, y, width, height = box
        if x < -1 or y < -1 or x + width > image_width + 1 or y + height > image_height + 1:
            self.leaving += 1
            self.fitting += x < width <= image_width + 1 and y < height <= image_height + 1
        if x > 2 and y > 2:
            self.apart += 1
            self.ordered += width > x and height > y

    def report(self, count: int, report: Callable) -> None:
        """Says so, if most of `count` boxes look so."""
        remedy = 'COCO format is [x, y, width, height]: subtract x1, y1 from x2, y2'
        kind = 'boxes look like [x1, y1, x2, y2]'
        if self.leaving > LEAVING * count and self.fitting > FITTING * self.leaving:
            detail = (
                f'{self.leaving} of {count} boxes leave their pictures as [x, y, width, height]'
            )
            report('error', kind, None, None, detail, remedy)
        elif self.apart >= FEW and self.ordered > LIKELY_CORNERS * self.apart:
            detail = (
                f'of {self.apart} boxes away from the left and upper border, {self.ordered} are '
                'wider than their x and higher than their y'
            )
            report('warning', kind, None, None, detail, f'look at some. {remedy}')
