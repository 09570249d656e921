"""What all tests share: fixed seeds, a tiny COCO folder, and when a missing op is a failure."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch

CLASSES = ('square', 'bar', 'post')


class TinyCoco(NamedTuple):
    """A COCO-format folder: `root` holds `annotations` (a file) and `images` (a folder)."""

    root: Path
    annotations: Path
    images: Path
    classes: tuple


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test starts from the same random state, whichever tests ran before."""
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def tiny_coco(tmp_path_factory):
    """Eight noisy 64 x 48 pictures with one to three filled rectangles each, three classes."""
    root = tmp_path_factory.mktemp('tiny_coco')
    images_dir = root / 'images'
    images_dir.mkdir()
    rng = np.random.default_rng(0)
    shapes = ((16, 16), (24, 8), (8, 24))  # (width, height) in pixels, one per class
    images, annotations = [], []
    for image_id in range(1, 9):
        picture = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        for label in rng.permutation(3)[: 1 + image_id % 3]:
            width, height = shapes[label]
            x = int(rng.integers(0, 64 - width))
            y = int(rng.integers(0, 48 - height))
            picture[y : y + height, x : x + width, label] = 230
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': int(label) + 1,
                    'bbox': [x, y, width, height],
                    'area': width * height,
                    'iscrowd': 0,
                }
            )
        name = f'{image_id:02d}.png'
        cv2.imwrite(str(images_dir / name), picture)
        images.append({'id': image_id, 'file_name': name, 'width': 64, 'height': 48})
    categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES, 1)]
    annotation_file = root / 'annotations.json'
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    annotation_file.write_text(json.dumps(content))
    return TinyCoco(root, annotation_file, images_dir, CLASSES)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """DDETR_REQUIRE_NATIVE=1 turns skips for want of the compiled op into failures."""
    report = yield
    required = os.environ.get('DDETR_REQUIRE_NATIVE') == '1'
    if required and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if 'native' in reason.lower():
            report.outcome = 'failed'
            report.longrepr = f'{reason}\n(a failure because DDETR_REQUIRE_NATIVE=1)'
    return report
