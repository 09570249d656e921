"""The third step of a conversion: class rows go where the model has their classes."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ddetr_plugin.checkpoints.class_rows.plan import named_classes, plan_rows, source_classes
from ddetr_plugin.checkpoints.class_rows.rows import (
    OFFICIAL_TO_COCO,
    ClassRows,
    fresh_rows,
    is_class_head,
    is_proposal_head,
    move_rows,
    resize_proposal_rows,
)
from ddetr_plugin.checkpoints.record import Conversion, Target

__all__ = ['move_class_rows']


def move_class_rows(
    conversion: Conversion,
    meta: Mapping,
    target: Target | None,
    classes: Sequence[str] | str | None,
    target_classes: Sequence[str] | None,
) -> Conversion:
    """The weights with the class rows of the model that will take them.

    Args:
        conversion: by our names, complete; what is wrong with its class heads is an error here,
            before anything moves.
        meta: of the `Source`.
        target: the model; None if there is none.
        classes: as in `to_ours`.
        target_classes: as in `to_ours`.

    Raises:
        ValueError: class heads are damaged, or the rows cannot be moved.
    """
    state = conversion.state
    heads = [name for name in state if is_class_head(name)]
    if not heads:
        return conversion
    count = _common_rows(state, heads)
    known = source_classes(meta, count)
    plan = plan_rows(known, count, _rows_of(target, is_class_head), classes, target_classes)
    rows = plan.source if plan and plan.source != tuple(range(count)) else None
    moved = {} if rows is None else {name: _moved(name, state[name], rows) for name in heads}
    wanted = _rows_of(target, is_proposal_head) or (len(plan.source) if plan else None)
    proposals = _resized_proposals(state, wanted)

    notes = []
    if plan and known is None and classes is None:
        notes.append(
            f'the weights do not say which classes their {count} rows are: they stay where they '
            f'are, for {_few(plan.classes)}'
        )
    if plan and moved:
        notes += _on_moved_rows(plan, known, state[heads[0]], moved[heads[0]])
    notes += [
        f'{name}: {len(new)} of {len(state[name])} rows, row 0 (objectness) first (D3)'
        for name, new in proposals.items()
    ]
    dropped: dict[str, Tensor] = {}
    # Only these can be put back: which rows they were is known.
    if rows == OFFICIAL_TO_COCO:
        rest = [row for row in range(count) if row not in rows]
        dropped = {name: state[name][rest].clone() for name in heads}
        for name in filter(is_proposal_head, state):
            dropped[name] = state[name][len(proposals.get(name, state[name])) :].clone()
    names = plan.classes if plan else known
    return conversion._replace(
        state={**state, **moved, **proposals},
        notes=(*conversion.notes, *notes),
        warnings=(*conversion.warnings, *_on_other_names(meta, count)),
        dropped=dropped,
        classes=None if names is None else tuple(names),
        rows=rows,
        source_rows=count,
    )


def _common_rows(state: Mapping[str, Tensor], heads: Sequence[str]) -> int:
    """The number of rows of all class heads.

    Raises:
        ValueError: they differ, or a tensor has not the dimensions of a head.
    """
    for name in (*heads, *filter(is_proposal_head, state)):
        dims = 2 if name.endswith('weight') else 1
        if state[name].dim() != dims:
            raise ValueError(
                f'{name} has the shape {tuple(state[name].shape)}, expected {dims} dimensions with '
                'a row per class; the file is damaged'
            )
    counts = {len(state[name]) for name in heads}
    if len(counts) > 1:
        raise ValueError(
            f'the class heads have different numbers of rows, {sorted(counts)}, expected one '
            'number for all decoder layers; the file was edited or damaged'
        )
    return counts.pop()


def _rows_of(target: Target | None, kind: Callable[[str], bool]) -> int | None:
    state = {} if target is None else target.state
    return next((len(tensor) for name, tensor in state.items() if kind(name)), None)


def _moved(name: str, old: Tensor, rows: Sequence[int | None]) -> Tensor:
    return move_rows(old, rows, fresh_rows(name, len(rows), old))


def _resized_proposals(state: Mapping[str, Tensor], wanted: int | None) -> dict[str, Tensor]:
    """The proposal heads that have another number of rows than `wanted`, with as many."""
    return {
        name: resize_proposal_rows(name, tensor, wanted)
        for name, tensor in state.items()
        if is_proposal_head(name) and wanted is not None and len(tensor) != wanted
    }


def _on_moved_rows(
    plan: ClassRows, known: Sequence[str | None] | None, old: Tensor, new: Tensor
) -> list[str]:
    """Notes on where rows went; `old` and `new` are one head before and after."""
    left_out = len(set(range(len(old))) - set(plan.source))
    notes = [
        f'class rows: {len(old) - left_out} of {len(old)} moved, {left_out} left out: '
        f'{tuple(old.shape)} -> {tuple(new.shape)}'
        + (f'; fresh: {", ".join(plan.fresh)}' if plan.fresh else '')
    ]
    if not any(row is not None for row in plan.source):
        notes.append(
            f'none of the wanted classes is among those of the weights ({_few(known)}): every '
            'class starts fresh; --classes keep leaves rows where they are'
        )
    return notes


def _on_other_names(meta: Mapping, rows: int) -> list[str]:
    """A warning if the file names another number of classes than there are rows."""
    names = named_classes(meta)
    if names is None or len(names) == rows:
        return []
    return [
        f'the file names {len(names)} classes, but its heads have {rows} rows: which row '
        'is which class cannot be told'
    ]


def _few(names: Sequence[str | None] | None) -> str:
    named = [name for name in names or () if name is not None]
    return ', '.join(named[:4]) + (', ...' if len(named) > 4 else '')
