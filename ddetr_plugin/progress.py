"""A progress bar with rate and time left, where somebody is looking: on a terminal."""

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ['track']

Item = TypeVar('Item')


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, while a bar shows how many have been taken; what is printed stands above it.

    Nothing is shown where the standard output is no terminal.

    Args:
        items: any number of them.
        what: words before the bar.
        total: how many there are, if that is known and `items` has no length.
    """
    if not sys.stdout.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task):
            return Text('' if task.speed is None else f'{task.speed:.3g}/s')

    if total is None and isinstance(items, Sized):
        total = len(items)
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TextColumn('time left'),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(), transient=True) as progress:
        task = progress.add_task(what, total=total)
        for item in items:
            yield item
            progress.advance(task)
