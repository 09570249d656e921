"""Class rows on their way from one model to another: which classes they are, and who goes where."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from ddetr_plugin.checkpoints.class_rows.rows import (
    OFFICIAL_ROWS,
    OFFICIAL_TO_COCO,
    ClassRows,
    coco_classes,
    coco_rows,
    fresh_rows,
    is_class_head,
    is_proposal_head,
    move_rows,
    resize_proposal_rows,
)

__all__ = ['map_classes', 'named_classes', 'plan_rows', 'source_classes']


def named_classes(meta: Mapping) -> list[str | None] | None:
    """The classes that a file names, whatever the number of its rows; None if it names none.

    Args:
        meta: of a `Source`; the names are what mmdet writes, `classes` of its `dataset_meta` or, in
            older files, `CLASSES`; else its `row_names`.
    """
    names = None
    for holder in (meta.get('dataset_meta'), meta):
        if names is None and isinstance(holder, Mapping):
            names = {str(key).lower(): value for key, value in holder.items()}.get('classes')
    names = meta.get('row_names') if names is None else names
    return list(names) if isinstance(names, (list, tuple)) else None


def source_classes(
    meta: Mapping, rows: int, warnings: list[str] | None = None
) -> list[str | None] | None:
    """What the rows of a class head stand for, as far as the file or their number says.

    Args:
        meta: of a `Source`.
        rows: their number, which tells COCO's classes where the file names none.
        warnings: gets a sentence if the file names another number of classes.
    """
    names = named_classes(meta)
    if names is not None and len(names) == rows:
        return coco_rows() if _are_official(names) else names
    if names is not None:
        if warnings is not None:
            warnings.append(
                f'the file names {len(names)} classes, but its heads have {rows} rows: which row '
                'is which class cannot be told'
            )
        return None
    if rows == OFFICIAL_ROWS:
        return coco_rows()
    return list(coco_classes()) if rows == len(OFFICIAL_TO_COCO) else None


def _are_official(names: Sequence[str | None]) -> bool:
    """Whether rows are the official 91, whatever the gaps between the categories are called.

    Some files call them N/A, others by the names that COCO gave up: nothing was trained there.
    """
    if len(names) != OFFICIAL_ROWS:
        return False
    return [str(names[row]).lower() for row in OFFICIAL_TO_COCO] == list(coco_classes())


def plan_rows(
    known: Sequence[str | None] | None,
    rows: int,
    wanted_rows: int | None,
    classes: Sequence[str] | str | None,
    target_classes: Sequence[str] | None,
) -> ClassRows | None:
    """Which row goes where; None leaves them all.

    Args:
        known: what the rows stand for; None if nobody says.
        rows: their number.
        wanted_rows: class rows of the model; None without a model.
        classes: as in `to_ours`.
        target_classes: as in `to_ours`.

    Raises:
        ValueError: the rows cannot be moved by name, or a name occurs twice.
    """
    if classes == 'keep':
        return None
    names = classes or _wanted_names(known, rows, wanted_rows, target_classes)
    if names is None:
        return None
    if known is not None:
        return ClassRows.by_name(known, names)
    if len(names) == rows:
        return ClassRows(tuple(range(rows)), tuple(names))
    raise ValueError(
        f'the weights have {rows} class rows and do not say of which classes, so they cannot '
        f'be moved to the {len(names)} wanted by name; use --classes keep, or name all '
        f'{rows} of them'
    )


def _wanted_names(
    known: Sequence[str | None] | None,
    rows: int,
    wanted_rows: int | None,
    target_classes: Sequence[str] | None,
) -> Sequence[str] | None:
    """The classes of a model that nobody named, if they can be told."""
    if target_classes and len(target_classes) == wanted_rows:
        return target_classes
    official = rows == OFFICIAL_ROWS and known == coco_rows()
    return coco_classes() if official and wanted_rows in (None, len(OFFICIAL_TO_COCO)) else None


def map_classes(
    ours: dict[str, Tensor],
    meta: Mapping,
    target: Mapping[str, Tensor] | None,
    classes: Sequence[str] | str | None,
    target_classes: Sequence[str] | None,
    notes: list[str],
    warnings: list[str],
) -> tuple[tuple | None, tuple | None, dict[str, Tensor], int | None]:
    """Moves class rows within `ours`.

    Returns:
        `classes`, `rows`, `dropped` and `source_rows` of `Conversion`.

    Args:
        ours: weights by our names.
        meta: of the `Source`.
        target: as in `to_ours`.
        classes: as in `to_ours`.
        target_classes: as in `to_ours`.
        notes: gets a sentence for whatever was moved, and for what could not be told.
        warnings: as in `source_classes`.

    Raises:
        ValueError: class heads are damaged, or the rows cannot be moved.
    """
    heads = [name for name in ours if is_class_head(name)]
    if not heads:
        return None, None, {}, None
    count = _common_rows(ours, heads)
    shape = tuple(ours[heads[0]].shape)
    known = source_classes(meta, count, warnings)
    plan = plan_rows(known, count, _rows_of(target, is_class_head), classes, target_classes)
    rows = plan.source if plan and plan.source != tuple(range(count)) else None
    # Only these can be put back: which rows they were is known.
    reversible = rows == OFFICIAL_TO_COCO
    dropped: dict[str, Tensor] = {}
    if plan and known is None and classes is None:
        notes.append(
            f'the weights do not say which classes their {count} rows are: they stay where they '
            f'are, for {_few(plan.classes)}'
        )
    if rows is not None:
        rest = [row for row in range(count) if row not in rows]
        for name in heads:
            old = ours[name]
            ours[name] = move_rows(old, rows, fresh_rows(name, len(rows), old))
            if reversible:
                dropped[name] = old[rest].clone()
        notes.append(
            f'class rows: {count - len(rest)} of {count} moved, {len(rest)} left out: '
            f'{shape} -> {tuple(ours[heads[0]].shape)}'
            + (f'; fresh: {", ".join(plan.fresh)}' if plan.fresh else '')
        )
        if not any(row is not None for row in rows):
            notes.append(
                f'none of the wanted classes is among those of the weights ({_few(known)}): every '
                'class starts fresh; --classes keep leaves rows where they are'
            )
    for name in filter(is_proposal_head, list(ours)):
        old = ours[name]
        wanted = _rows_of(target, is_proposal_head) or (len(plan.source) if plan else len(old))
        new = resize_proposal_rows(name, old, wanted)
        if len(new) != len(old):
            notes.append(f'{name}: {len(new)} of {len(old)} rows, row 0 (objectness) first (D3)')
            ours[name] = new
        if reversible:
            dropped[name] = old[len(new) :].clone()
    if plan:
        return plan.classes, rows, dropped, count
    return None if known is None else tuple(known), rows, dropped, count


def _few(names: Sequence[str | None] | None) -> str:
    named = [name for name in names or () if name is not None]
    return ', '.join(named[:4]) + (', ...' if len(named) > 4 else '')


def _common_rows(ours: Mapping[str, Tensor], heads: Sequence[str]) -> int:
    """The number of rows of all class heads.

    Raises:
        ValueError: they differ, or a tensor has not the dimensions of a head.
    """
    for name in (*heads, *filter(is_proposal_head, ours)):
        dims = 2 if name.endswith('weight') else 1
        if ours[name].dim() != dims:
            raise ValueError(
                f'{name} has the shape {tuple(ours[name].shape)}, expected {dims} dimensions with '
                'a row per class; the file is damaged'
            )
    counts = {len(ours[name]) for name in heads}
    if len(counts) > 1:
        raise ValueError(
            f'the class heads have different numbers of rows, {sorted(counts)}, expected one '
            'number for all decoder layers; the file was edited or damaged'
        )
    return counts.pop()


def _rows_of(target: Mapping[str, Tensor] | None, kind: Callable[[str], bool]) -> int | None:
    return next((len(tensor) for name, tensor in (target or {}).items() if kind(name)), None)
