"""Detect objects on images: draw boxes and write COCO-style JSON.

    %(prog)s IMAGES CONFIG CHECKPOINT --out DIR [--score-thr 0.3] [--device cpu]
        [--recursive] [--one-class-per-box] [--nms IOU]

IMAGES is an image, a folder, or a quoted glob. They go through the config's own test pipeline, as
in tools/test.py. DIR gets the drawn images and predictions.json in COCO format: images, categories,
and annotations with image_id, category_id, bbox (x, y, width, height in pixels of the image), area,
iscrowd and score. Categories have the ids of the config's annotation file if that is there and
names the same classes, else 1, 2, ... A file that is no readable image, or only a part of one, is
reported and skipped; the exit status is then 1. What is left out of a folder is said. Images of
several folders, as a glob or --recursive may name, keep their paths below the folder that holds
them all.

A detector may find one object several times: as several classes (--one-class-per-box keeps the best
of each query) or by several queries (--nms). Evaluation does neither.
"""

import json
import sys
from pathlib import Path

from ddetr_plugin.cli.options import unit_number


def add_arguments(parser):
    add = parser.add_argument
    add('images', help='an image, a folder, or a quoted glob')
    add('config', help='config file; of a demo run: the one in its work folder')
    add('checkpoint', help='checkpoint file or folder of transformers')
    add('--out', type=Path, required=True, help='folder for the results')
    add('--score-thr', type=float, default=0.3)
    add('--device', help='default: the GPU if there is one, else the CPU')
    add('--recursive', action='store_true', help='folders below a folder, too')
    add(
        '--one-class-per-box',
        action='store_true',
        help='of the classes that one query found, keep the best alone',
    )
    add(
        '--nms',
        type=unit_number,
        metavar='IOU',
        help='of two boxes of one class that overlap by more than this, keep the better one',
    )


def choose(found, args):
    """The detections that the options ask for, as rows.

    Returns:
        list of ((x, y, w, h) in pixels of the image, class index, score), best first, clipped to
        the image.
    """
    import numpy as np

    from ddetr_plugin.apis import one_class_per_box, suppress_overlaps

    instances = found.instances
    if args.one_class_per_box:
        instances = one_class_per_box(instances)
    instances = instances[instances.scores >= args.score_thr]
    if args.nms is not None:
        instances = suppress_overlaps(instances, args.nms)
    instances = instances.numpy()
    height, width = found.size
    rows = []
    for box, label, score in zip(instances.bboxes, instances.labels, instances.scores):
        x1, x2 = np.clip(box[[0, 2]], 0, width)
        y1, y2 = np.clip(box[[1, 3]], 0, height)
        if x2 > x1 and y2 > y1:
            rows.append(([float(v) for v in (x1, y1, x2 - x1, y2 - y1)], int(label), float(score)))
    return rows


def reason_of(error):
    """Why an image could not be predicted, in a line."""
    import cv2

    if isinstance(error, cv2.error) and error.func == 'resize':
        return 'no width or height is left at the size that the network sees'
    return ' '.join(str(error).split())[:300] or type(error).__name__


def predict_images(images, model, pipeline, classes, args):
    """Predict and draw each image.

    Args:
        images: of `name_results`.
        classes: names of the model's classes.

    Returns:
        [(name, (height, width), rows of `choose`)] of the images that could be predicted.
    """
    import cv2

    from ddetr_plugin.apis import detect
    from ddetr_plugin.apis.drawing import MIN_WIDTH, draw_boxes
    from ddetr_plugin.compat import MissingMMCVOpError
    from ddetr_plugin.datasets import UnreadableImageError
    from ddetr_plugin.models.losses.assigner import NotFiniteError

    results = []
    for number, (path, name, target) in enumerate(images, start=1):
        try:
            found = detect(model, pipeline, path, number)
        except MissingMMCVOpError as error:
            sys.exit(f'error: {error}')
        except NotFiniteError as error:
            # The model is at fault, not the image: the others would be no better.
            sys.exit(f'error: {error}')
        except UnreadableImageError as error:
            print(f'{path}: not a readable image, skipped ({error})')
            continue
        # No image may end the others of its folder, not even one too large for the memory.
        except (cv2.error, ValueError, RuntimeError, MemoryError, AssertionError) as error:
            print(f'{path}: cannot be predicted, skipped ({reason_of(error)})')
            continue
        rows = choose(found, args)
        results.append((name.as_posix(), found.size, rows))
        texts = [(box, label, f'{classes[label]} {score:.2f}') for box, label, score in rows]
        scale = max(1, -(-MIN_WIDTH // found.size[1]))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(target), draw_boxes(found.drawable, texts, scale)):
            sys.exit(f'error: {target} cannot be written; is the disk full?')
        print(f'{path}: {len(rows)} objects')
    return results


def to_coco(results, ids, classes):
    """The content of predictions.json."""
    images, annotations = [], []
    for image_id, (name, (height, width), rows) in enumerate(results, start=1):
        images.append(dict(id=image_id, file_name=name, width=width, height=height))
        for box, label, score in rows:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=ids[label],
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                    score=score,
                )
            )
    categories = [dict(id=i, name=name) for i, name in zip(ids, classes)]
    return dict(images=images, categories=categories, annotations=annotations)


def run(args, parser):
    import torch

    from ddetr_plugin.apis import (
        PredictionPipeline,
        category_ids,
        find_images,
        load_model,
        name_results,
    )
    from ddetr_plugin.apis.config_reading import load_config, require_checkpoint
    from ddetr_plugin.compat import MissingMMCVOpError
    from ddetr_plugin.engine.host_memory import keep_freed_memory

    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        sys.exit(f'error: --device {args.device} cannot be used: {str(error).splitlines()[0]}')
    if args.device == 'cpu':
        keep_freed_memory()
    try:
        if args.out.exists() and not args.out.is_dir():
            raise ValueError(f'--out {args.out} is a file; name a folder')
        paths, left_out = find_images(args.images, args.recursive, skip=args.out)
        images = name_results(paths, args.out)
        config = load_config(args.config)
        require_checkpoint(args.checkpoint)
        model, classes = load_model(config, args.checkpoint, args.device)
        pipeline = PredictionPipeline(config)
        ids = category_ids(config, classes)
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, MissingMMCVOpError) as error:
        sys.exit(f'error: {error}')
    for line in left_out:
        print(f'left out: {line}')
    results = predict_images(images, model, pipeline, classes, args)
    content = to_coco(results, ids, classes)
    (args.out / 'predictions.json').write_text(json.dumps(content, indent=1) + '\n')
    print(f'{len(content["annotations"])} objects on {len(results)} images: {args.out}')
    if len(results) < len(images):
        sys.exit(1)
