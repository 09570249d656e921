"""Annotation files and detections made from code, and metrics run on them.

As a program, in one of several processes as torchrun starts them, it evaluates its share of
`ordinary` against the file it is given, and writes what the metric says to a file in a folder.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from pycocotools import mask as mask_utils

from ddetr_plugin.evaluation import CocoMetric

WIDTH, HEIGHT = 320, 240


def annotation(image_id, category_id, box, **more) -> dict:
    """Of a box (x, y, width, height) in pixels; `id` is numbered by `write_truth`."""
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return (
        dict(
            image_id=image_id,
            category_id=category_id,
            bbox=list(box),
            area=w * h,
            iscrowd=0,
            segmentation=[polygon],
        )
        | more
    )


def write_truth(path: Path, annotations, categories=((1, 'person'), (2, 'car')), images=1) -> Path:
    """An annotation file; `categories` are (id, name) in the order of the file."""
    content = dict(
        images=[
            dict(id=i, file_name=f'{i}.jpg', width=WIDTH, height=HEIGHT)
            for i in range(1, images + 1)
        ],
        annotations=[dict(a, id=a.get('id', n)) for n, a in enumerate(annotations, 1)],
        categories=[dict(id=i, name=name) for i, name in categories],
    )
    path.write_text(json.dumps(content))
    return path


def found(image_id, rows=(), masks=False, **more) -> dict:
    """A data sample; rows are (label, box as (x, y, width, height), score)."""
    labels = torch.tensor([label for label, _, _ in rows], dtype=torch.long)
    boxes = torch.tensor([box for _, box, _ in rows], dtype=torch.float64).reshape(-1, 4)
    predicted = dict(
        bboxes=torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1),
        scores=torch.tensor([score for *_, score in rows], dtype=torch.float64),
        labels=labels,
    )
    if masks:
        predicted['masks'] = [_rle(box) for box in boxes.tolist()]
    return dict(
        img_id=image_id,
        img_path=f'images/{image_id}.jpg',
        ori_shape=(HEIGHT, WIDTH),
        pred_instances=predicted | more,
    )


def _rle(box) -> dict:
    x, y, w, h = box
    (rle,) = mask_utils.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], HEIGHT, WIDTH)
    return rle


def score(file, samples, classes=('person', 'car'), kind=CocoMetric, **options) -> dict:
    """What a metric says of data samples, its name before its results taken off."""
    metric = kind(**(dict(ann_file=str(file)) if file else {}), **options)
    metric.dataset_meta = dict(classes=classes)
    with contextlib.redirect_stdout(io.StringIO()):
        for sample in samples:
            metric.process({}, [sample])
        results = metric.evaluate(len(samples))
    return {name.removeprefix('coco/'): value for name, value in results.items()}


def ordinary(seed=0, images=8, classes=3) -> tuple[list, list]:
    """Annotations with crowds and all sizes, and detections of all qualities, masks included."""
    rng = np.random.default_rng(seed)
    annotations, samples = [], []
    for image in range(1, images + 1):
        rows = []
        for _ in range(rng.integers(2, 9)):
            size = rng.integers(6, [200, 150])
            corner = rng.integers(0, [WIDTH - size[0], HEIGHT - size[1]])
            box, label = [*map(int, (*corner, *size))], int(rng.integers(classes))
            crowd = int(rng.random() < 0.15)
            annotations.append(annotation(image, label + 1, box, iscrowd=crowd))
            for _ in range(rng.integers(3)):
                jitter = rng.normal(scale=0.06, size=4) * [*size, *size]
                near = np.add(box, jitter).clip([0, 0, 2, 2])
                rows.append((label, near.tolist(), float(rng.random())))
        for _ in range(rng.integers(5)):
            box = rng.uniform(5, 100, 4).tolist()
            rows.append((int(rng.integers(classes)), box, float(rng.random())))
        samples.append(found(image, rows, masks=True))
    return annotations, samples


def main(file, folder):
    torch.distributed.init_process_group('gloo')
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    _, samples = ordinary(images=7)
    metric = CocoMetric(ann_file=file, metric=['bbox', 'segm'], classwise=True)
    metric.dataset_meta = dict(classes=('person', 'car', 'dog'))
    # As DefaultSampler deals samples out: to all the same number, the first ones once more.
    for i in range(rank, len(samples) + world - 1, world):
        metric.process({}, [samples[i % len(samples)]])
    scores = metric.evaluate(len(samples))
    Path(folder, f'{rank}.json').write_text(json.dumps(scores))
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:3])
