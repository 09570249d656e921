"""Large images in overlapping tiles, and one set of detections from those of all tiles.

Two tiles see an object that lies across both in the part of the image that they have in common. So
detections of two tiles are of one object if their boxes agree in that part, whatever the tiles cut
off: an object that one tile holds and the other cuts, the halves of one that both cut, a large one
that is found on the whole image and in pieces. A small object in front of a large one of the same
class stays, as its box agrees with that of the large one nowhere, and so do neighbours within one
tile, among which a DETR has decided already.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmengine.structures import InstanceData

__all__ = ['Tile', 'make_tiles', 'merge_detections', 'merge_tiles']

# Intersection over union, in the part that two tiles have in common, from which on the boxes agree.
AGREE = 0.5
# A box that ends so near to an inner border of its tile is cut off: share of the tile's side.
NEAR = 0.01


class Tile(NamedTuple):
    """A part of an image, in pixels; the right and lower border belong to the next one."""

    left: int
    top: int
    right: int
    bottom: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """The pixels of an image (H, W) or (H, W, channels)."""
        return np.ascontiguousarray(image[self.top : self.bottom, self.left : self.right])


def make_tiles(size: tuple[int, int], side: int, overlap: float) -> list[Tile]:
    """The whole image and, if it is larger than a tile, tiles that cover it.

    Objects that no tile holds are found on the whole image.

    Args:
        size: (height, width) of the image in pixels.
        side: of a square tile in pixels; tiles are smaller only where the image is.
        overlap: share of its side, at least, that a tile has in common with the next one.

    Raises:
        ValueError: `side` is not positive, or `overlap` not in 0..1 or 1.
    """
    if side < 1 or not 0 <= overlap < 1:
        raise ValueError(
            f'tiles have a side of 1 pixel or more and an overlap of 0 to below 1, got {side} and '
            f'{overlap}'
        )
    height, width = size
    whole = Tile(0, 0, width, height)
    if max(size) <= side:
        return [whole]
    tiles = [
        Tile(left, top, min(left + side, width), min(top + side, height))
        for top in _starts(height, side, overlap)
        for left in _starts(width, side, overlap)
    ]
    return [whole, *tiles]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles begin, evenly spread from 0 to the last one, which ends at `length`."""
    if length <= side:
        return [0]
    step = max(1, side * (1 - overlap))
    count = int(np.ceil((length - side) / step)) + 1
    return np.linspace(0, length - side, count).round().astype(int).tolist()


def merge_detections(
    found: Sequence[InstanceData], tiles: Sequence[Tile], size: tuple[int, int]
) -> InstanceData:
    """One set of detections from those of all tiles.

    Args:
        found: of each tile, on the CPU: `bboxes` (n, 4) as (x1, y1, x2, y2) in pixels of the tile,
            `scores` (n,), `labels` (n,), and `queries` (n,) and `masks` (n, height, width) where
            the model has them.
        tiles: of `make_tiles`.
        size: (height, width) of the image.

    Returns:
        The same in pixels of the image, best first. An object has the best score of its parts, and
        the query of the part whose box is taken; its mask covers those of all parts.
    """
    corners = [
        getattr(part.bboxes, 'tensor', part.bboxes) + torch.tensor((tile.left, tile.top) * 2)
        for part, tile in zip(found, tiles)
    ]
    origins = [index for index, part in enumerate(found) for _ in range(len(part))]
    scores = torch.cat([part.scores for part in found])
    labels = torch.cat([part.labels for part in found])
    boxes, groups = merge_tiles(
        torch.cat(corners).float().numpy(),
        scores.float().numpy(),
        labels.numpy(),
        np.array(origins, dtype=int),
        tiles,
    )
    first = [group[0] for group in groups]
    merged = InstanceData(
        bboxes=torch.from_numpy(boxes),
        scores=torch.stack([scores[group].max() for group in groups]) if groups else scores[:0],
        labels=labels[first],
    )
    if all('queries' in part for part in found):
        merged.queries = torch.cat([part.queries for part in found])[first]
    if all('masks' in part for part in found):
        merged.masks = torch.zeros((len(groups), *size), dtype=torch.bool)
        masks = [mask for part in found for mask in part.masks]
        for whole, group in zip(merged.masks, groups):
            for member in group:
                tile = tiles[origins[member]]
                whole[tile.top : tile.bottom, tile.left : tile.right] |= masks[member].bool()
    return merged


def merge_tiles(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    origins: np.ndarray,
    tiles: Sequence[Tile],
) -> tuple[np.ndarray, list[list[int]]]:
    """Which detections of several tiles are of one object.

    Args:
        boxes: (n, 4), (x1, y1, x2, y2) in pixels of the image.
        scores: (n,).
        labels: (n,); objects have one label.
        origins: (n,) index of the tile that each is from.
        tiles: of `make_tiles`.

    Returns:
        (m, 4) float32 boxes, sorted by the best score of each object: that of the best detection
        which its tile does not cut off, else one around all parts; the detections of each object,
        at most one of each tile, that whose box is taken first, or without one the best.
    """
    limits = np.array(tiles, np.float64).reshape(-1, 4)
    cut = _cut_off(boxes, limits[origins], limits.max(0)[2:])
    free = np.ones(len(boxes), bool)
    merged, groups = [], []
    for best in np.argsort(-scores, kind='stable'):
        if not free[best]:
            continue
        group = _grow(int(best), boxes, labels, origins, limits, free)
        whole = [member for member in group if not cut[member]]
        if whole:
            first = max(whole, key=lambda member: scores[member])
            group.sort(key=lambda member: member != first)
            box = boxes[first]
        else:
            box = np.concatenate((boxes[group, :2].min(0), boxes[group, 2:].max(0)))
        merged.append(box)
        groups.append(group)
    return np.array(merged, np.float32).reshape(-1, 4), groups


def _grow(
    best: int,
    boxes: np.ndarray,
    labels: np.ndarray,
    origins: np.ndarray,
    limits: np.ndarray,
    free: np.ndarray,
) -> list[int]:
    """The detections of the object that `best` is of, itself first; they are free no more."""
    group, queue = [best], [best]
    free[best] = False
    while queue:
        member = queue.pop(0)
        candidates = np.flatnonzero(free & (labels == labels[best]))
        candidates = candidates[~np.isin(origins[candidates], origins[group])]
        agreement = _agreement(member, candidates, boxes, limits[origins])
        for tile in np.unique(origins[candidates]):
            of_tile = np.where(origins[candidates] == tile, agreement, 0)
            place = int(of_tile.argmax())
            if of_tile[place] >= AGREE:
                found = int(candidates[place])
                free[found] = False
                group.append(found)
                queue.append(found)
    return group


def _agreement(one: int, others: np.ndarray, boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(k,) IoU of a box with others, both clipped to what their two tiles have in common."""
    low = np.maximum(limits[one, :2], limits[others, :2])
    high = np.minimum(limits[one, 2:], limits[others, 2:])

    def clipped(corners):
        return np.clip(corners[..., :2], low, high), np.clip(corners[..., 2:], low, high)

    (a_low, a_high), (b_low, b_high) = clipped(boxes[one]), clipped(boxes[others])
    shared = np.prod(np.clip(np.minimum(a_high, b_high) - np.maximum(a_low, b_low), 0, None), -1)
    union = np.prod(a_high - a_low, -1) + np.prod(b_high - b_low, -1) - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def _cut_off(boxes: np.ndarray, limits: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(n,) bool: the box ends at a border of its tile, `limits` (n, 4), inside the image.

    `size` is (width, height) of the image.
    """
    near = NEAR * (limits[:, 2:] - limits[:, :2])
    inner_low, inner_high = limits[:, :2] > 0, limits[:, 2:] < size
    return (
        (inner_low & (boxes[:, :2] <= limits[:, :2] + near))
        | (inner_high & (boxes[:, 2:] >= limits[:, 2:] - near))
    ).any(1)
