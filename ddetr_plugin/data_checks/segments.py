"""What does not fit in annotation files in COCO's panoptic format."""

from itertools import chain
from operator import itemgetter
from pathlib import Path

from ddetr_plugin.data_checks.boxes import (
    NUMBER,
    Report,
    is_box,
    report_unknown_class,
    report_unknown_picture,
)
from ddetr_plugin.data_checks.entries import (
    check_categories,
    check_ids,
    check_images,
    check_use,
    repeated,
    reporter,
)
from ddetr_plugin.data_checks.findings import Finding
from ddetr_plugin.data_checks.marks import check_marks

__all__ = ['check_segments', 'is_map_id']

# Ids are three bytes of a pixel; 0 is a pixel without segment.
ID_LIMIT = 1 << 24


def is_map_id(number) -> bool:
    """Whether a pixel of a map can be a segment of this id."""
    return type(number) in NUMBER and 0 < number < ID_LIMIT and not number % 1


def check_segments(file: Path, content: dict, training: bool, scored: bool = True) -> list[Finding]:
    """What does not fit in a panoptic annotation file, its pictures and maps unseen.

    Args:
        file: where `content` comes from.
        content: as `read_panoptic` returns it.
        training: whether it is to be learned from.
        scored: whether predictions are to be compared with it, as panopticapi does.
    """
    findings: list[Finding] = []
    report = reporter(file, findings)
    annotations, categories = content['annotations'], content['categories']
    segments = list(chain.from_iterable(map(itemgetter('segments_info'), annotations)))
    check_ids(content, ('images', 'categories'), report)
    check_categories(categories, report)
    check_use(categories, segments, 'segments', training, report)
    annotated = {a['image_id'] for a in annotations if a['segments_info']}
    single = {
        a['image_id']
        for a in annotations
        if any(not segment.get('iscrowd') for segment in a['segments_info'])
    }
    check_images(content['images'], annotated, single, report)
    check_marks(segments, 'segment', report)
    _check_annotations(content, report)
    _check_segments(content, scored, report)
    return findings


def _check_annotations(content: dict, report: Report) -> None:
    names = {image['id']: image['file_name'] for image in content['images']}
    ids = list(map(itemgetter('image_id'), content['annotations']))
    for image_id, count in repeated(ids):
        report(
            'error',
            'pictures that are annotated more than once',
            'annotation',
            image_id,
            f'{names.get(image_id)}, {count} times',
            'put all segments of a picture into one entry of annotations',
        )
    for image_id in ids:
        if image_id not in names:
            report_unknown_picture(image_id, image_id, names, report)


def _check_segments(content: dict, scored: bool, report: Report) -> None:
    names = {image['id']: image['file_name'] for image in content['images']}
    categories = set(map(itemgetter('id'), content['categories']))
    for annotation in content['annotations']:
        segments = annotation['segments_info']
        for segment in segments:
            # A million segments are looked through in a second where nothing is wrong with them.
            try:
                _, _, width, height = segment['bbox']
                fits = (
                    type(segment['id']) is int
                    and 0 < segment['id'] < ID_LIMIT
                    and segment['category_id'] in categories
                    and width >= 1
                    and height >= 1
                    and segment['area'] > 0
                    and segment['iscrowd'] >= 0
                )
            except (KeyError, TypeError, ValueError):
                fits = False
            if not fits:
                name = names.get(annotation['image_id'])
                _check_segment(segment, name, categories, scored, report)
        if len(set(map(itemgetter('id'), segments))) < len(segments):
            for segment_id, count in repeated(map(itemgetter('id'), segments)):
                report(
                    'error',
                    'segments without an id of their own',
                    'segment',
                    segment_id,
                    f'{names.get(annotation["image_id"])}, the id occurs {count} times in it',
                    'give every segment of a picture another id, here and in its map',
                )


def _check_segment(
    segment: dict, name: str | None, categories: set, scored: bool, report: Report
) -> None:
    def found(level, kind, detail, remedy):
        report(level, kind, 'segment', segment['id'], f'{name}, {detail}', remedy)

    if not is_map_id(segment['id']):
        found(
            'error',
            'segment ids that no map can hold',
            f'the id is {segment["id"]!r}',
            f'ids are integers from 1 to {ID_LIMIT - 1}, R + 256 G + 65536 B of the pixels in the '
            'map; 0 is a pixel without segment',
        )
    if segment['category_id'] not in categories:
        report_unknown_class(segment, name, categories, report, 'segment')
    box, area, crowd = (segment.get(key) for key in ('bbox', 'area', 'iscrowd'))
    if not is_box(box) or not isinstance(area, NUMBER):
        found(
            'error',
            'segments without bbox or area',
            f'bbox {box}, area {area}',
            'mmdet needs both: bbox = [x, y, width, height] and area in pixels, of its mask',
        )
    elif not (box[2] >= 1 and box[3] >= 1 and area > 0):
        found(
            'warning',
            'segments without extent',
            f'bbox {box}, area {area}',
            'mmdet leaves them out, whatever is in the map; write the bbox and area of the mask',
        )
    if not isinstance(crowd, NUMBER):
        found(
            # A training takes for single segments what says nothing about crowds.
            'error' if scored or crowd is not None else 'warning',
            'segments without iscrowd',
            f'iscrowd {crowd}',
            'panopticapi needs it: 1 if several things are one segment, else 0',
        )
