"""Rows of class heads: which class each belongs to, and how they move to other classes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    'COCO_GAPS',
    'OFFICIAL_TO_COCO',
    'ClassRows',
    'coco_classes',
    'coco_rows',
    'fresh_rows',
    'is_class_head',
    'is_proposal_head',
    'move_rows',
    'plan_rows',
    'resize_proposal_rows',
    'source_classes',
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


def source_classes(meta: Mapping, rows: int) -> list[str | None] | None:
    """What the rows of a class head stand for, as far as the file or their number says."""
    names = meta.get('row_names') or (meta.get('dataset_meta') or {}).get('classes')
    if names is not None and len(names) == rows:
        return list(names)
    if rows == OFFICIAL_ROWS:
        return coco_rows()
    return list(coco_classes()) if rows == OFFICIAL_ROWS - len(COCO_GAPS) else None


def plan_rows(
    known: Sequence[str | None] | None,
    rows: int,
    wanted_rows: int | None,
    classes: Sequence[str] | str | None,
    target_classes: Sequence[str] | None,
) -> ClassRows | None:
    """Which row goes where; None leaves them all."""
    if classes == 'keep':
        return None
    if classes is None:
        if wanted_rows is None:
            official = rows == OFFICIAL_ROWS and known == coco_rows()
            return ClassRows.by_name(known, coco_classes()) if official else None
        names = target_classes if target_classes and len(target_classes) == wanted_rows else None
        if rows == wanted_rows:
            same = names and known and sorted(map(str, known)) == sorted(map(str, names))
            return ClassRows.by_name(known, names) if same else None
        if names is None:
            if rows != OFFICIAL_ROWS or wanted_rows != OFFICIAL_ROWS - len(COCO_GAPS):
                return None  # the shapes do not fit, and are reported
            names = coco_classes()
        classes = names
    if known is None:
        if len(classes) == rows:
            return ClassRows(tuple(range(rows)), tuple(classes))
        raise ValueError(
            f'the weights have {rows} class rows and do not say of which classes, so they cannot '
            f'be moved to the {len(classes)} wanted by name; use --classes keep, or name all '
            f'{rows} of them'
        )
    return ClassRows.by_name(known, classes)
