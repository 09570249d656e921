"""What does not fit in annotation files of boxes."""

from operator import itemgetter
from pathlib import Path

from ddetr_plugin.data_checks.boxes import NUMBER, Report, check_boxes
from ddetr_plugin.data_checks.entries import (
    check_categories,
    check_ids,
    check_images,
    check_use,
    reporter,
)
from ddetr_plugin.data_checks.findings import Finding
from ddetr_plugin.data_checks.marks import check_marks

__all__ = ['check_annotations']


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
    report = reporter(file, findings)
    boxes = content['annotations']
    check_ids(content, ('images', 'annotations', 'categories'), report)
    _check_numbering(boxes, scored, report)
    check_categories(content['categories'], report)
    check_use(content['categories'], boxes, 'boxes', training, report)
    annotated = set(map(itemgetter('image_id'), boxes))
    single = {box['image_id'] for box in boxes if not box.get('iscrowd')}
    check_images(content['images'], annotated, single, report)
    check_boxes(content, scored, report)
    check_marks(boxes, 'annotation', report)
    return findings


def _check_numbering(annotations: list[dict], scored: bool, report: Report) -> None:
    for annotation in annotations:
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
