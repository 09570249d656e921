"""Boxes and areas of masks and keypoints, where an annotation does not state them."""

import numpy as np
from pycocotools import mask as coco_mask

__all__ = ['area_of', 'box_of']


def box_of(annotation: dict, size: tuple) -> list[float] | None:
    """[x, y, width, height] in pixels, around the mask, else around the keypoints; None without.

    Args:
        annotation: with `segmentation` (polygons, or RLE compressed or not) or `keypoints`.
        size: (width, height) of the image.
    """
    segmentation = annotation.get('segmentation')
    points = _points(segmentation)
    if points is None and isinstance(segmentation, dict):
        rle = _encoded(segmentation)
        return None if rle is None else [float(v) for v in coco_mask.toBbox(rle)]
    if points is None:
        points = _keypoints(annotation.get('keypoints'))
    if points is None:
        return None
    (left, top), (right, bottom) = points.min(0), points.max(0)
    # Labels may lie a little outside.
    left, right = np.clip([left, right], 0, size[0])
    top, bottom = np.clip([top, bottom], 0, size[1])
    return [round(float(v), 4) for v in (left, top, right - left, bottom - top)]


def area_of(annotation: dict, box: list, size: tuple) -> float:
    """Of the mask, as pycocotools counts it; else of the box. Arguments as `box_of`."""
    segmentation = annotation.get('segmentation')
    if isinstance(segmentation, dict):
        rle = _encoded(segmentation)
        if rle is not None:
            return float(coco_mask.area(rle))
    elif isinstance(segmentation, list) and _points(segmentation) is not None:
        polygons = [p for p in segmentation if len(p) >= 6]
        width, height = (int(side) for side in size)
        rles = coco_mask.frPyObjects(polygons, height, width)
        return float(coco_mask.area(coco_mask.merge(rles)))
    return float(box[2] * box[3])


def _points(segmentation) -> np.ndarray | None:
    """(N, 2) of polygons; None if there is none of three points."""
    if not isinstance(segmentation, list):
        return None
    try:
        polygons = [np.asarray(p, dtype=np.float64) for p in segmentation if len(p) >= 6]
        points = np.concatenate([polygon.reshape(-1, 2) for polygon in polygons])
    except (TypeError, ValueError):  # no lists of pairs of numbers, or nothing at all
        return None
    return points if np.isfinite(points).all() else None


def _keypoints(keypoints) -> np.ndarray | None:
    """(N, 2) of those that are labelled."""
    try:
        stated = np.asarray(keypoints, dtype=np.float64).reshape(-1, 3)
    except (TypeError, ValueError):
        return None
    points = stated[stated[:, 2] > 0, :2]
    return points if len(points) and np.isfinite(points).all() else None


def _encoded(segmentation: dict) -> dict | None:
    try:
        if isinstance(segmentation['counts'], list):
            height, width = segmentation['size']
            return coco_mask.frPyObjects(segmentation, height, width)
        return segmentation if len(segmentation['size']) == 2 else None
    except (KeyError, TypeError, ValueError):
        return None
