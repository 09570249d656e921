"""Class rows on their way from one model to another: which classes they are, and who goes where."""

from collections.abc import Mapping, Sequence

from ddetr_plugin.checkpoints.class_rows.rows import (
    OFFICIAL_ROWS,
    OFFICIAL_TO_COCO,
    ClassRows,
    coco_classes,
    coco_rows,
)

__all__ = ['named_classes', 'plan_rows', 'source_classes']


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


def source_classes(meta: Mapping, rows: int) -> list[str | None] | None:
    """What the rows of a class head stand for, as far as the file or their number says.

    Args:
        meta: of a `Source`.
        rows: their number, which tells COCO's classes where the file names none.

    Returns:
        `rows` names, None for rows of no class; None if nobody says, or the file names another
        number of classes.
    """
    names = named_classes(meta)
    if names is not None:
        known = names if len(names) == rows else None
        return coco_rows() if known is not None and _are_official(known) else known
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
