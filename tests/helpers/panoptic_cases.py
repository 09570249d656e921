"""Panoptic scenes and files made from code, and panoptic quality by its definition."""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ddetr_plugin.models.heads.panoptic_mask_head import INSTANCE_OFFSET

# Ids with gaps, as COCO's; things first.
CATEGORIES = ((2, 'square', 1), (7, 'bar', 1), (92, 'sky', 0), (149, 'road', 0))
CLASSES = tuple(name for _, name, _ in CATEGORIES)
METAINFO = dict(classes=CLASSES, thing_classes=CLASSES[:2], stuff_classes=CLASSES[2:])
NUM_THINGS, NUM_CLASSES = 2, 4
SKY = 2  # its label
COLOURS = {2: (230, 60, 60), 7: (60, 60, 230), 92: (200, 180, 90), 149: (70, 90, 70)}
SHAPES = {2: (16, 16), 7: (10, 26)}  # (height, width) in pixels


class Scene(NamedTuple):
    """`picture` (H, W, 3) uint8, `ids` (H, W) of segments, and (id, category id, iscrowd) each."""

    picture: np.ndarray
    ids: np.ndarray
    segments: list[tuple[int, int, int]]


def make_scene(seed: int, crowd: bool = False) -> Scene:
    """48 x 64 pixels: sky over road, a square and a bar in front; maybe a crowd of squares."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((48, 64), dtype=np.int64)
    horizon = rng.integers(16, 32)
    regions = [(slice(horizon), 92, 0), (slice(horizon, None), 149, 0)]
    for category, (height, width) in SHAPES.items():
        y, x = rng.integers(0, 48 - height), rng.integers(0, 64 - width)
        regions.append(((slice(y, y + height), slice(x, x + width)), category, 0))
    if crowd:
        regions.append(((slice(0, 8), slice(50, 64)), 2, 1))
    # All three bytes of an id count, and the segments are in no particular order.
    segments = []
    for region, category, iscrowd in regions:
        segments.append((int(rng.integers(1, 1 << 24)), category, iscrowd))
        ids[region] = segments[-1][0]
    picture = rng.integers(0, 20, (48, 64, 3), dtype=np.uint8)
    for segment, category, _ in segments:
        picture[ids == segment] += np.array(COLOURS[category], dtype=np.uint8)
    segments = [segment for segment in segments if segment[0] in ids]
    return Scene(picture, ids, [segments[i] for i in rng.permutation(len(segments))])


def write_scenes(root: Path, scenes: list[Scene], categories=CATEGORIES) -> Path:
    """COCO's panoptic format: `annotations.json` (returned), `images/` and `segments/`.

    The boxes in the file are those of whole pictures: boxes must come from masks.
    """
    images, annotations = [], []
    for folder in ('images', 'segments'):
        (root / folder).mkdir(parents=True)
    for number, (picture, ids, segments) in enumerate(scenes, 1):
        height, width = ids.shape
        cv2.imwrite(str(root / 'images' / f'{number}.jpg'), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        bgr = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], -1).astype(np.uint8)
        cv2.imwrite(str(root / 'segments' / f'{number}.png'), bgr)
        infos = [
            dict(id=segment, category_id=category, iscrowd=crowd, bbox=[0, 0, width, height])
            | dict(area=max(1, int((ids == segment).sum())))
            for segment, category, crowd in segments
        ]
        images.append(dict(id=number, file_name=f'{number}.jpg', width=width, height=height))
        annotations.append(dict(image_id=number, file_name=f'{number}.png', segments_info=infos))
    content = dict(images=images, annotations=annotations)
    content['categories'] = [dict(id=i, name=n, isthing=thing) for i, n, thing in categories]
    path = root / 'annotations.json'
    path.write_text(json.dumps(content))
    return path


def quality_by_definition(predicted, wanted, num_classes) -> float:
    """PQ over classes, 0..100, of maps in mmdet's code.

    A match is an IoU above one half of segments of one class.
    """
    tp, fp, fn, iou = (np.zeros(num_classes) for _ in range(4))
    ours, theirs = np.unique(predicted), np.unique(wanted)
    matched = set()
    for a in ours[ours % INSTANCE_OFFSET < num_classes]:
        for b in theirs:
            one, other = predicted == a, wanted == b
            overlap = (one & other).sum() / (one | other).sum()
            if a % INSTANCE_OFFSET == b % INSTANCE_OFFSET and overlap > 0.5:
                tp[b % INSTANCE_OFFSET] += 1
                iou[b % INSTANCE_OFFSET] += overlap
                matched |= {('ours', a), ('theirs', b)}
    for kind, codes, missed in (('ours', ours, fp), ('theirs', theirs, fn)):
        for code in codes[codes % INSTANCE_OFFSET < num_classes]:
            missed[code % INSTANCE_OFFSET] += (kind, code) not in matched
    seen = tp + fp + fn > 0
    return 100 * (iou[seen] / (tp + fp / 2 + fn / 2)[seen]).mean()
