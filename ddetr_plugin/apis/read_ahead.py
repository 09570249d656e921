"""A function of many items in several threads, a few items ahead of whoever takes the results."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ['batched', 'read_ahead']

Item = TypeVar('Item')
Result = TypeVar('Result')


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int
) -> Iterator[Result]:
    """The results of `function` for all items, in their order.

    Args:
        function: called in `workers` threads.
        items: taken one by one, in the thread of whoever takes the results.
        workers: threads; 0 calls the function when its result is asked for.
        ahead: how many items are at work or done while one result is taken, at most.

    Raises:
        What `function` and `items` raise, when its turn comes.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix='ddetr_read_ahead')
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items each, the last one maybe shorter; none of them is kept here."""
    items = iter(items)
    for first in items:
        yield [first, *itertools.islice(items, size - 1)]
