"""Compose scenes of handwritten digits on clutter, as a COCO-format data set.

The digits are scikit-learn's real scans (10 classes, 8 x 8 pixels); those of the validation scenes
never occur in training scenes. The same arguments give the same scenes. The folder appears when it
is complete; an existing one that was made with the same arguments is kept.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ddetr_plugin.progress import track

__all__ = ['MAX_DIGITS', 'make_demo_data', 'place_digit']

SIZE = 160  # side of a scene, pixels
DIGIT_SIDES = (14, 70)  # of an upscaled scan, pixels; drawn log-uniformly
MAX_DIGITS = 8
EMPTY = 0.06  # share of scenes without digits
MAX_COVERED = 0.25  # of the smaller of two boxes by the other
VERSION = 2  # of the recipe; another number makes the data anew
STAMP = 'recipe.json'  # in a folder that was made here: of what


def draw_clutter(rng: np.random.Generator) -> np.ndarray:
    """A background: colour gradient, blotches of noise, lines, arcs and rectangles.

    Returns:
        (SIZE, SIZE, 3) float32 in 0..255.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE][..., None] / SIZE
    corners = rng.uniform(0, 255, (4, 3))
    picture = (
        corners[0] * (1 - x) * (1 - y)
        + corners[1] * x * (1 - y)
        + corners[2] * (1 - x) * y
        + corners[3] * x * y
    )
    grains = int(rng.integers(8, 40))
    noise = rng.normal(0, 1, (grains, grains, 3)).astype(np.float32)
    blotches = cv2.resize(noise, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    picture = np.clip(picture + blotches * rng.uniform(10, 40), 0, 255).astype(np.uint8)
    picture = np.ascontiguousarray(picture)
    for _ in range(rng.integers(4, 16)):
        colour = [int(c) for c in rng.integers(0, 256, 3)]
        kind = rng.integers(3)
        a, b = (tuple(int(v) for v in point) for point in rng.integers(0, SIZE, (2, 2)))
        thickness = int(rng.integers(1, 5))
        if kind == 0:
            cv2.line(picture, a, b, colour, thickness, cv2.LINE_AA)
        elif kind == 1:
            axes = tuple(int(v) for v in rng.integers(3, 30, 2))
            turn, start, end = (int(rng.integers(lo, lo + 180)) for lo in (0, 0, 180))
            cv2.ellipse(picture, a, axes, turn, start, end, colour, thickness, cv2.LINE_AA)
        else:
            width, height = (int(v) for v in rng.integers(3, 40, 2))
            filled = cv2.FILLED if rng.random() < 0.4 else 2
            cv2.rectangle(picture, a, (a[0] + width, a[1] + height), colour, filled)
    return picture.astype(np.float32)


def covers_too_much(box: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether `box` (x, y, w, h) and one of `others` overlap by more than MAX_COVERED."""
    for other in others:
        width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
        height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
        smaller = min(box[2] * box[3], other[2] * other[3])
        if width > 0 and height > 0 and width * height > MAX_COVERED * smaller:
            return True
    return False


def place_digit(
    rng: np.random.Generator, scan: np.ndarray, boxes: Sequence[Sequence[float]]
) -> tuple | None:
    """Finds a size and a place for one scan (8, 8).

    Returns:
        (ink (s, s) in 0..1, left, top, box of the ink (x, y, w, h) in pixels), or None if 20
        attempts found no free place.
    """
    for _ in range(20):
        side = int(np.exp(rng.uniform(*np.log(DIGIT_SIDES))))
        ink = cv2.resize(scan, (side, side), interpolation=cv2.INTER_CUBIC)
        ink = np.clip((ink - 0.25) * 2, 0, 1)
        rows, cols = np.nonzero(ink > 0.3)
        left, top = (int(v) for v in rng.integers(0, SIZE - side + 1, 2))
        x, y = left + int(cols.min()), top + int(rows.min())
        box = (x, y, int(np.ptp(cols)) + 1, int(np.ptp(rows)) + 1)
        if not covers_too_much(box, boxes):
            return ink, left, top, box
    return None


def compose_scene(
    rng: np.random.Generator, scans: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, list, list[int]]:
    """One scene.

    Args:
        rng: numpy Generator.
        scans: (n, 8, 8) float32 in 0..1, to draw from.
        labels: (n,) digits.

    Returns:
        picture (SIZE, SIZE, 3) uint8, list of boxes (x, y, w, h) in pixels, list of digits.
    """
    picture = draw_clutter(rng)
    count = 0 if rng.random() < EMPTY else int(rng.integers(1, MAX_DIGITS + 1))
    boxes: list[tuple[int, int, int, int]] = []
    digits: list[int] = []
    for index in rng.integers(0, len(scans), count):
        placed = place_digit(rng, scans[index], boxes)
        if placed is None:
            continue
        ink, left, top, box = placed
        patch = picture[top : top + len(ink), left : left + len(ink)]
        colour = rng.uniform(0, 255, 3)
        # Legible: in one channel at least, the ink differs from the mean behind it.
        while np.abs(colour - patch.mean((0, 1))).max() < 80:
            colour = rng.uniform(0, 255, 3)
        patch += ink[..., None] * (colour - patch)
        boxes.append(box)
        digits.append(int(labels[index]))
    picture += rng.normal(0, 6, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), boxes, digits


def write_split(
    folder: Path, split: str, count: int, seed: int, scans: np.ndarray, labels: np.ndarray
) -> None:
    """Writes `count` scenes and their annotations under `folder`."""
    images: list[dict] = []
    annotations: list[dict] = []
    for number in track(range(count), f'Making scenes ({split})'):
        # A generator per scene: the n-th scene does not depend on how many there are.
        rng = np.random.default_rng([seed, split == 'val', number])
        picture, boxes, digits = compose_scene(rng, scans, labels)
        name = f'{split}_{number:05d}.jpg'
        cv2.imwrite(str(folder / 'images' / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        images.append(dict(id=number + 1, file_name=name, width=SIZE, height=SIZE))
        for box, digit in zip(boxes, digits):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number + 1,
                    category_id=digit + 1,
                    bbox=list(box),
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
    categories = [dict(id=digit + 1, name=str(digit)) for digit in range(10)]
    content = dict(images=images, annotations=annotations, categories=categories)
    path = folder / 'annotations' / f'instances_{split}.json'
    path.write_text(json.dumps(content))


def read_stamp(folder: Path) -> dict | None:
    """The recipe of a folder that was made here; None of others."""
    try:
        recipe = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None
    own = isinstance(recipe, dict) and recipe.keys() == {'version', 'train', 'val', 'seed'}
    return recipe if own and all(type(value) is int for value in recipe.values()) else None


def make_demo_data(
    out: str | os.PathLike, train: int = 4000, val: int = 300, seed: int = 0
) -> bool:
    """Make the data set at `out`, unless it is there already.

    Args:
        out: folder; it appears when it is complete.
        train, val: numbers of scenes.
        seed: the same one gives the same scenes.

    Returns:
        Whether anything was made.

    Raises:
        FileExistsError: `out`, or the folder `<out>.part` that it is prepared in, exists and was
            not made by this function. Nothing was touched.
    """
    from sklearn.datasets import load_digits  # takes seconds, and scenes are made once

    out = Path(out)
    part = out.with_name(out.name + '.part')
    recipe = dict(version=VERSION, train=train, val=val, seed=seed)
    if read_stamp(out) == recipe:
        return False
    for folder in (out, part):
        if os.path.lexists(folder) and read_stamp(folder) is None:
            raise FileExistsError(
                f'{folder} exists and was not made by tools/make_demo_data.py: there is no '
                f'{STAMP} of that tool in it. Move it away or remove it'
            )
    shutil.rmtree(part, ignore_errors=True)
    for name in ('images', 'annotations'):
        (part / name).mkdir(parents=True)
    # First: what an interruption leaves behind is known as this tool's by it.
    (part / STAMP).write_text(json.dumps(recipe))
    digits = load_digits()
    scans, labels = (digits.images / 16).astype(np.float32), digits.target
    order = np.random.default_rng(seed).permutation(len(scans))
    held_out, rest = np.split(order, [len(order) // 5])
    write_split(part, 'train', train, seed, scans[rest], labels[rest])
    write_split(part, 'val', val, seed, scans[held_out], labels[held_out])
    shutil.rmtree(out, ignore_errors=True)
    os.replace(part, out)
    return True
