"""Rows of class heads: which class each belongs to, and how they move to other classes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ['COCO_GAPS', 'ClassRows', 'coco_classes', 'coco_rows', 'is_class_head', 'move_rows']

# Rows of the official 91 that belong to no category: row = COCO category id, 1..90 with gaps.
COCO_GAPS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
OFFICIAL_ROWS = 91
PRIOR_BIAS = -4.59512  # -log((1 - 0.01) / 0.01), as new heads start
NEVER_BIAS = -20.0  # of rows that stand for no category: score 2e-9


def coco_classes() -> tuple[str, ...]:
    """The 80 category names of COCO in mmdet's order, which is that of the category ids."""
    from mmdet.datasets.coco import CocoDataset

    return CocoDataset.METAINFO['classes']


def coco_rows(classes: Sequence[str] | None = None) -> list[str | None]:
    """What each of the 91 official rows stands for; None in the gaps."""
    names = iter(classes or coco_classes())
    return [None if row in COCO_GAPS else next(names) for row in range(OFFICIAL_ROWS)]


class ClassRows(NamedTuple):
    """Where the rows of new class heads come from.

    Attributes:
        source: for each new row the old row, or None for a row that starts fresh.
        classes: for each new row the name of its class, or None.
    """

    source: tuple[int | None, ...]
    classes: tuple[str | None, ...]

    @classmethod
    def by_name(cls, old: Sequence[str | None], new: Sequence[str]) -> 'ClassRows':
        """Rows of `new` from the rows of `old` with the same name, in whatever case.

        Raises:
            ValueError: a name occurs twice.
        """
        places = {str(name).lower(): row for row, name in enumerate(old) if name is not None}
        wanted = [str(name).lower() for name in new]
        twice = sorted({name for name in wanted if wanted.count(name) > 1})
        if twice:
            raise ValueError(f'class names must be unique, got {", ".join(twice)} more than once')
        return cls(tuple(places.get(name) for name in wanted), tuple(new))

    @property
    def fresh(self) -> list[str]:
        """Classes that the source does not know."""
        return [str(name) for row, name in zip(self.source, self.classes) if row is None]


def is_class_head(name: str) -> bool:
    """Whether a parameter, by our name, has a row per class and belongs to the decoder.

    The classifier of proposals (`query_head.cls_branch`) does not: its row 0 is the objectness.
    """
    return name.startswith('bbox_head.cls_branches.')


def move_rows(tensor: Tensor, source: Sequence[int | None], fresh: Tensor) -> Tensor:
    """Rows of `tensor` (K, ...) as `source` says; rows of `fresh` (len(source), ...) for None."""
    rows = [fresh[i] if row is None else tensor[row] for i, row in enumerate(source)]
    return torch.stack(rows).to(tensor.dtype)


def fresh_rows(name: str, count: int, like: Tensor, bias: float = PRIOR_BIAS) -> Tensor:
    """(count, ...) rows as a new head has them; the same for the same name and count."""
    if like.dim() == 1:
        return torch.full((count,), bias, dtype=like.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        return nn.Linear(like.shape[1], count).weight.detach().to(like.dtype)
