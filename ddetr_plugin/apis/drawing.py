"""Detections drawn on images, and beside ground truth."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ddetr_plugin.data_checks import Split
from ddetr_plugin.datasets import read_image
from ddetr_plugin.evaluation import read_detections

__all__ = ['MIN_WIDTH', 'draw_boxes', 'draw_pairs']

IMAGES = 12  # validation images that are drawn
MIN_WIDTH = 480  # smaller ones are enlarged to this, pixels
SCORE_THR = 0.3
COLOURS = ((60, 60, 255), (60, 200, 60), (255, 120, 40), (0, 200, 255), (220, 80, 220))  # BGR


def draw_boxes(
    image: np.ndarray, boxes: Sequence[tuple[Sequence[float], int, str]], scale: float
) -> np.ndarray:
    """Draw labelled boxes.

    Args:
        image: (H, W, 3) uint8, BGR; not changed.
        boxes: list of ((x, y, w, h) in pixels of `image`, class index, text).
        scale: factor by which the drawing is larger than the image.

    Returns:
        (H * scale, W * scale, 3) uint8.
    """
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
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


def draw_pairs(split: Split, result_file: str | os.PathLike, out_dir: str | os.PathLike) -> None:
    """Draw detections beside ground truth.

    Args:
        split: that was evaluated.
        result_file: detections as COCO JSON; see `ddetr_plugin.evaluation.read_detections`.
        out_dir: gets detections/ with a PNG at each image's path, ground truth left and
            detections right, and detections.png with all of them.

    Raises:
        NotFiniteError: a box or a score in `result_file` is NaN or infinite.
    """
    categories = split.content['categories']
    names = {c['id']: (i, str(c['name'])) for i, c in enumerate(categories)}
    truths: dict[int, list] = {}
    detections: dict[int, list] = {}
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
    for entry in split.content['images'][:IMAGES]:
        image = read_image(split.image_folder / entry['file_name'])
        scale = max(1, -(-MIN_WIDTH // image.shape[1]))
        pair = np.hstack(
            [
                _caption(draw_boxes(image, found.get(entry['id'], []), scale), title)
                for found, title in ((truths, 'ground truth'), (detections, 'detections'))
            ]
        )
        # Below `folder`, wherever the annotations say that the image is.
        parts = [part for part in Path(entry['file_name']).parts if part not in ('..', '/')]
        target = folder.joinpath(*parts).with_suffix('.png')
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), pair)
        pairs.append(pair)
    cv2.imwrite(str(Path(out_dir) / 'detections.png'), _sheet(pairs))


def _caption(canvas: np.ndarray, text: str) -> np.ndarray:
    """`canvas` with a line of text above it."""
    bar = np.full((24, canvas.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack((bar, canvas))


def _sheet(pairs: Sequence[np.ndarray]) -> np.ndarray:
    """All of them on one image, two in a row, at most 1920 pixels wide."""
    width = max(pair.shape[1] for pair in pairs)
    height = max(pair.shape[0] for pair in pairs)
    cells = [
        np.pad(p, ((0, height - p.shape[0]), (0, width - p.shape[1]), (0, 0)), constant_values=255)
        for p in pairs
    ]
    cells += [np.full_like(cells[0], 255)] * (len(cells) % 2)
    rows = [np.hstack(cells[i : i + 2]) for i in range(0, len(cells), 2)]
    sheet = np.vstack(rows)
    shrink = min(1.0, 1920 / sheet.shape[1])
    return cv2.resize(sheet, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
