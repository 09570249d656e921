"""Ids and numbers as every tool understands them: integers, each for one entry."""

import math
from pathlib import Path

from ddetr_plugin.intake.changes import Changes

__all__ = ['number', 'renumber']


def number(value):
    """A number for what is written as one, as text or as a truth value; else the value itself."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        try:
            value = float(value) if not value.strip().lstrip('+-').isdigit() else int(value)
        except ValueError:
            return value
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def renumber(file: Path, part: str, ids: list, least: int | None, changes: Changes) -> dict | None:
    """New ids for old ones, where the old ones are not unique integers; None if they are.

    Integers that are written otherwise (1.0, '1') keep their value; else the entries are numbered
    in their order.

    Args:
        file: the annotation file.
        part: 'image', 'annotation' or 'category'.
        ids: of the entries, in their order.
        least: the smallest that is allowed; None for any.
        changes: gets what is changed.

    Returns:
        dict of `key(old)` and new ids; also None where two entries have one id, so that what
        refers to it is not clear.
    """
    if all(type(i) is int and (least is None or i >= least) for i in ids):
        return None
    keys = [key(i) for i in ids]
    if len(set(keys)) < len(keys):
        return None
    numbers = [number(i) for i in ids]
    if not all(type(n) is int and (least is None or n >= least) for n in numbers):
        numbers = list(range(1, len(ids) + 1))
    for old, new in zip(ids, numbers):
        if type(old) is not int or old != new:
            changes.add(file, f'{part} ids', f'{part} {old!r}', old, new)
    return dict(zip(keys, numbers))


def key(entry_id) -> str:
    """The same text for an id and for what refers to it in another way: 1, 1.0 and '1'."""
    return str(number(entry_id))
