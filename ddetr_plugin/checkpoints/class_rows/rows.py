"""Rows of class heads: which class each belongs to, and how they move to other classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    'COCO_GAPS',
    'OFFICIAL_ROWS',
    'OFFICIAL_TO_COCO',
    'ClassRows',
    'coco_classes',
    'coco_rows',
    'fresh_rows',
    'is_class_head',
    'is_proposal_head',
    'move_rows',
    'resize_proposal_rows',
    'with_official_rows',
]

# Rows of the official 91 that belong to no category: row = COCO category id, 1..90 with gaps.
COCO_GAPS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
OFFICIAL_ROWS = 91
OFFICIAL_TO_COCO = tuple(row for row in range(OFFICIAL_ROWS) if row not in COCO_GAPS)
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
        """Rows of `new` from the rows of `old` with the same name.

        Names that no row has are looked up in whatever case, where that leaves one row only.

        Raises:
            ValueError: a name of `new` occurs twice.
        """
        if list(old) == list(new):
            return cls(tuple(range(len(old))), tuple(new))
        twice = sorted({str(name) for name in new if list(new).count(name) > 1})
        if twice:
            raise ValueError(f'class names must be unique, got {", ".join(twice)} more than once')
        places = {str(name): row for row, name in enumerate(old) if name is not None}
        lower = Counter(name.lower() for name in places)
        wanted = Counter(str(name).lower() for name in new)
        loose = {
            name.lower(): row
            for name, row in places.items()
            if lower[name.lower()] == 1 == wanted[name.lower()]
        }
        source = (places.get(str(name), loose.get(str(name).lower())) for name in new)
        return cls(tuple(source), tuple(new))

    @property
    def fresh(self) -> list[str]:
        """Classes that the source does not know."""
        return [str(name) for row, name in zip(self.source, self.classes) if row is None]


def is_class_head(name: str) -> bool:
    """Whether a parameter, by our name, has a row per class and belongs to the decoder.

    The classifier of proposals (`query_head.cls_branch`) does not: its row 0 is the objectness.
    """
    return name.startswith('bbox_head.cls_branches.')


def is_proposal_head(name: str) -> bool:
    """Whether a parameter, by our name, belongs to the classifier of proposals."""
    return name.startswith('query_head.cls_branch.')


def resize_proposal_rows(name: str, tensor: Tensor, count: int) -> Tensor:
    """The first `count` rows of a proposal classifier, and fresh ones where it has fewer.

    Only row 0 means anything: it is the objectness, whatever the classes are (D3).
    """
    return torch.cat((tensor[:count], fresh_rows(name, count - len(tensor), tensor)))


def move_rows(tensor: Tensor, source: Sequence[int | None], fresh: Tensor) -> Tensor:
    """Rows of `tensor` (K, ...) as `source` says; rows of `fresh` (len(source), ...) for None."""
    rows = [fresh[i] if row is None else tensor[row] for i, row in enumerate(source)]
    return torch.stack(rows).to(tensor.dtype)


def fresh_rows(name: str, count: int, like: Tensor, bias: float = PRIOR_BIAS) -> Tensor:
    """(count, ...) rows as a new head has them; the same for the same name and count."""
    if count <= 0:
        return like[:0]
    if like.dim() == 1:
        return like.new_full((count,), bias)
    # As nn.Linear draws them, from a generator of their own.
    generator = torch.Generator().manual_seed(sum(name.encode()))
    bound = like.shape[1] ** -0.5
    rows = torch.rand(count, like.shape[1], generator=generator) * (2 * bound) - bound
    return rows.to(like)


def with_official_rows(
    state: Mapping[str, Tensor], dropped: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Class heads of COCO's 80 rows with the official 91.

    Args:
        state: by our names; heads with another number of rows stay as they are.
        dropped: the rows that belong to no category, by our names; where they are missing, rows
            that never fire take their place.
    """
    result = dict(state)
    kept, gaps = list(OFFICIAL_TO_COCO), list(COCO_GAPS)
    for name, tensor in state.items():
        if not (is_class_head(name) or is_proposal_head(name)) or len(tensor) != len(kept):
            continue
        rest = dropped.get(name)
        if rest is None or rest.shape != (len(gaps), *tensor.shape[1:]):
            rest = tensor.new_zeros(len(gaps), *tensor.shape[1:])
            rest += NEVER_BIAS if tensor.dim() == 1 else 0
        if is_class_head(name):
            full = tensor.new_empty(OFFICIAL_ROWS, *tensor.shape[1:])
            full[kept], full[gaps] = tensor, rest.to(tensor)
        else:
            full = torch.cat((tensor, rest.to(tensor)))
        result[name] = full
    return result
