"""What does not fit in the boxes of an annotation file."""

import math
from collections.abc import Callable

__all__ = ['NUMBER', 'Report', 'check_boxes', 'is_box', 'report_unknown_picture']

NUMBER = (int, float)
# Shares of boxes from which on they look like corners.
LEAVING, FITTING, LIKELY_CORNERS, FEW = 0.2, 0.9, 0.98, 20

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
    corners = _CornerEvidence()
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
                and annotation['area'] > 0
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
            _check_box(annotation, images, categories, corners, scored, report)
    corners.report(len(content['annotations']), report)


def _check_box(
    annotation: dict, images: dict, categories: set, corners, scored: bool, report: Report
) -> None:
    image = images.get(annotation['image_id'])
    if image is None:
        report_unknown_picture(annotation['id'], annotation['image_id'], report)
        return
    if annotation['category_id'] not in categories:
        report(
            'error',
            'annotations of unknown classes',
            'annotation',
            annotation['id'],
            f'{image["file_name"]}, category_id {annotation["category_id"]}',
            'add it to categories, or correct the annotation',
        )
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
        area = 1 if 'area' in missing else area
    box = annotation.get('bbox')
    if not is_box(box):
        report(
            'error',
            'boxes that are not four finite numbers',
            'annotation',
            annotation['id'],
            f'{image["file_name"]}, bbox {box}',
            'bbox is [x, y, width, height] in pixels',
        )
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


def report_unknown_picture(annotation_id, image_id, report: Report) -> None:
    """Reports an annotation of a picture that is not listed."""
    report(
        'error',
        'annotations of unknown pictures',
        'annotation',
        annotation_id,
        f'image_id {image_id}',
        'add the picture to images, or remove the annotation',
    )


def is_box(box) -> bool:
    """Whether it is a list of four finite numbers."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, NUMBER) and math.isfinite(value) for value in box)
    )


def _fault(box: list, area: float, image_width: float, image_height: float) -> tuple | None:
    """Kind and remedy of what is wrong with a box of four finite numbers; None if it is right."""
    x, y, width, height = box
    right, bottom = x + width, y + height
    left_out = 'they are left out of the training; '
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


class _CornerEvidence:
    """Whether boxes look like corners, [x1, y1, x2, y2], as a whole."""

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

    def report(self, count: int, report: Report) -> None:
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
