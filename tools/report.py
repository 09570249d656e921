"""Pictures of a training: curves of its losses and mAP, detections beside ground truth."""

import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np

from ddetr_plugin.datasets import read_image
from ddetr_plugin.evaluation import read_detections

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402  the backend is chosen first: no screen is needed

LOSSES = ('loss', 'loss_cls', 'loss_bbox', 'loss_iou')
METRICS = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75')
PICTURES = 12  # validation pictures that are drawn
MIN_WIDTH = 480  # smaller ones are enlarged to this, pixels
SCORE_THR = 0.3
COLOURS = ((60, 60, 255), (60, 200, 60), (255, 120, 40), (0, 200, 255), (220, 80, 220))  # BGR


def read_scalars(work_dir):
    """What mmengine logged, of all runs in a work folder, later ones overriding earlier ones.

    Returns:
        ({iteration: losses}, {iteration: metrics}), rising.
    """
    losses, metrics = {}, {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if 'coco/bbox_mAP' in entry or 'coco_panoptic/PQ' in entry:
                if entry['step'] > 0:  # 0: a test apart from a training
                    metrics[entry['step']] = entry
            elif 'loss' in entry:
                losses[entry['iter']] = entry
    return dict(sorted(losses.items())), dict(sorted(metrics.items()))


def draw_curves(work_dir, out):
    """Writes a PNG with losses (left) and mAP (right) over iterations."""
    losses, metrics = read_scalars(work_dir)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout='constrained')
    for name in LOSSES:
        left.plot(list(losses), [entry.get(name, np.nan) for entry in losses.values()], label=name)
    left.set(xlabel='iteration', ylabel='loss (all layers: "loss"; last layer: the others)')
    left.set_yscale('log')
    for name in METRICS:
        values = [entry.get('coco/' + name, np.nan) for entry in metrics.values()]
        right.plot(list(metrics), values, marker='o', label=name)
    right.set(xlabel='iteration', ylabel='average precision', ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def draw_boxes(picture, boxes, scale):
    """Draws labelled boxes.

    Args:
        picture: (H, W, 3) uint8, BGR; not changed.
        boxes: list of ((x, y, w, h) in pixels of `picture`, class index, text).
        scale: factor by which the drawing is larger than the picture.

    Returns:
        (H * scale, W * scale, 3) uint8.
    """
    canvas = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    for (x, y, width, height), index, text in boxes:
        colour = COLOURS[index % len(COLOURS)]
        a = (round(x * scale), round(y * scale))
        b = (round((x + width) * scale), round((y + height) * scale))
        cv2.rectangle(canvas, a, b, colour, 2)
        (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
        top = max(a[1], text_height + 4)
        plate = (a[0], top - text_height - 4), (a[0] + text_width + 2, top)
        cv2.rectangle(canvas, *plate, colour, -1)
        cv2.putText(
            canvas, text, (a[0] + 1, top - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255,) * 3, 1,
            cv2.LINE_AA,
        )  # fmt: skip
    return canvas


def caption(canvas, text):
    """`canvas` with a line of text above it."""
    bar = np.full((24, canvas.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack((bar, canvas))


def draw_detections(split, result_file, out_dir):
    """Draws detections beside ground truth.

    Args:
        split: check_dataset.Split that was evaluated.
        result_file: detections as COCO JSON; see `ddetr_plugin.evaluation.read_detections`.
        out_dir: gets detections/ with a PNG at each picture's path, ground truth left and
            detections right, and detections.png with all of them.

    Raises:
        NotFiniteError: a box or a score in `result_file` is NaN or infinite.
    """
    categories = split.content['categories']
    names = {c['id']: (i, str(c['name'])) for i, c in enumerate(categories)}
    truths, detections = {}, {}
    for entry in split.content['annotations']:
        index, name = names[entry['category_id']]
        truths.setdefault(entry['image_id'], []).append((entry['bbox'], index, name))
    for entry in read_detections(result_file):
        if entry['score'] >= SCORE_THR:
            index, name = names[entry['category_id']]
            row = (entry['bbox'], index, f'{name} {entry["score"]:.2f}')
            detections.setdefault(entry['image_id'], []).append(row)
    folder = Path(out_dir) / 'detections'
    pairs = []
    for image in split.content['images'][:PICTURES]:
        picture = read_image(split.image_folder / image['file_name'])
        scale = max(1, -(-MIN_WIDTH // picture.shape[1]))
        pair = np.hstack(
            [
                caption(draw_boxes(picture, found.get(image['id'], []), scale), title)
                for found, title in ((truths, 'ground truth'), (detections, 'detections'))
            ]
        )
        # Below `folder`, wherever the annotations say that the picture is.
        parts = [part for part in Path(image['file_name']).parts if part not in ('..', '/')]
        target = folder.joinpath(*parts).with_suffix('.png')
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), pair)
        pairs.append(pair)
    width = max(pair.shape[1] for pair in pairs)
    height = max(pair.shape[0] for pair in pairs)
    sheet = [
        np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0)), constant_values=255)
        for p in pairs
    ]
    sheet += [np.full_like(sheet[0], 255)] * (len(sheet) % 2)
    rows = [np.hstack(sheet[i : i + 2]) for i in range(0, len(sheet), 2)]
    sheet = np.vstack(rows)
    shrink = min(1.0, 1920 / sheet.shape[1])
    sheet = cv2.resize(sheet, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(Path(out_dir) / 'detections.png'), sheet)
