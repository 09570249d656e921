"""Maps of the segments of a panoptic data set: whether they are there, and what is wrong."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ddetr_plugin.data_checks.findings import Finding
from ddetr_plugin.data_checks.pictures import check_each, file_name, find_missing
from ddetr_plugin.data_checks.segments import is_map_id
from ddetr_plugin.datasets.image_files import missing_end
from ddetr_plugin.datasets.load_panoptic import decode_segment_ids

__all__ = ['check_maps', 'find_missing_maps']

NAMED = 5  # ids that a finding names


def find_missing_maps(folder: Path, content: dict) -> list[Finding]:
    """The maps that are not there, without looking into any: arguments as `check_maps`."""
    return find_missing(folder, content['images'], 'seg')


def check_maps(folder: Path, content: dict) -> list[Finding]:
    """What is wrong with the maps: missing, broken, of another size or with other ids than stated.

    Every map is decoded, by all cores.

    Args:
        folder: `data_prefix.seg` of the dataset.
        content: as `read_panoptic` returns it.
    """
    findings = find_missing_maps(folder, content)
    if not folder.is_dir():
        return findings
    missing = {finding.file for finding in findings}
    listed: dict = {}
    for annotation in content['annotations']:
        ids = listed.setdefault(annotation['image_id'], [])
        ids += [s['id'] for s in annotation['segments_info'] if is_map_id(s['id'])]

    def check(image):
        return _check_map(folder, image, listed.get(image['id'], []))

    present = [i for i in content['images'] if str(folder / file_name(i, 'seg')) not in missing]
    return findings + check_each(check, present)


def _check_map(folder: Path, image: dict, listed: list) -> Iterator[Finding]:
    path = folder / file_name(image, 'seg')

    def finding(level, kind, detail, remedy):
        return Finding(level, kind, str(path), 'image', image['id'], detail, remedy)

    ids = None
    try:
        reason = missing_end(path)
        if reason is None:
            ids = decode_segment_ids(path.read_bytes())
    except (OSError, cv2.error) as error:
        reason = ' '.join(str(error).split())
    if ids is None:
        reason = reason or 'it cannot be decoded'
        yield finding('error', 'broken maps of segments', reason, 'replace it')
        return
    stated = (image['width'], image['height'])
    if ids.shape[::-1] != stated:
        yield finding(
            'error',
            'maps of another size than their pictures',
            f'is {ids.shape[1]} x {ids.shape[0]}, annotations say {stated[0]} x {stated[1]}',
            'make it as large as the picture',
        )
    # A row of a segment is one pixel here: there are a hundred times fewer than in the map.
    flat = ids.ravel()
    present = np.unique(np.append(flat[:1], flat[1:][flat[1:] != flat[:-1]]))
    unlisted = np.setdiff1d(present[present > 0], listed)
    if unlisted.size:
        yield finding(
            'warning',
            'maps with segments that are not listed',
            _some(unlisted),
            'their pixels are background in a training, and PQ takes what is predicted there for '
            'false; list them in segments_info, or make them 0',
        )
    absent = np.setdiff1d(listed, present)
    if absent.size:
        yield finding(
            'warning',
            'segments without a pixel in their map',
            _some(absent),
            'a training leaves them out, PQ counts them as missed; remove them from '
            'segments_info, or correct the map (8-bit RGB, id = R + 256 G + 65536 B)',
        )


def _some(ids: np.ndarray) -> str:
    more = f' and {ids.size - NAMED} more' if ids.size > NAMED else ''
    return f'id {", ".join(str(int(i)) for i in ids[:NAMED])}{more}'
