"""What ``torch.load`` may read besides weights, with its safety left on: one allow-list.

Since torch 2.6 ``torch.load`` refuses every class and function that is not on an allow-list
(``weights_only=True``). A Runner's checkpoint holds, besides tensors and plain Python values, the
logged scalars: `HistoryBuffer` objects with numpy arrays in them, numpy scalars such as the best
score, and references to HistoryBuffer's own statistics; a file of the official release its command
line. This module allows exactly these.
"""

import argparse
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

__all__ = ['allow_official_checkpoints', 'allow_runner_checkpoints']

# dtypes of logged values and of dataset meta information.
DTYPES = ('bool', 'uint8', 'int32', 'int64', 'float16', 'float32', 'float64', 'str')
STATISTICS = ('min', 'max', 'mean', 'current')


def _history_statistic(owner, name):
    """Stand in for ``getattr`` while unpickling: only HistoryBuffer's four statistics.

    A pickle names the method ``HistoryBuffer.mean`` as ``getattr(HistoryBuffer, 'mean')``. The
    real getattr would open every attribute of every allowed object to a malicious file.

    Raises:
        UnpicklingError: anything else is asked for.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise UnpicklingError(
            f'refused to look up {name!r} on {owner!r} while loading a checkpoint; '
            f'only HistoryBuffer and {STATISTICS} are allowed'
        )
    return getattr(HistoryBuffer, name)


def allow_runner_checkpoints():
    """Put the types of mmengine's checkpoints on torch's allow-list, for the whole process.

    Files written with numpy 1 (``numpy.core``) and numpy 2 (``numpy._core``) are both readable
    with either. Calling it again changes nothing.
    """
    # __reduce__ names the rebuilding functions without importing numpy's private modules.
    rebuild_array: Any = np.empty(0).__reduce__()[0]
    rebuild_scalar: Any = np.float64(0).__reduce__()[0]
    types = [HistoryBuffer, np.ndarray, np.dtype, *(type(np.dtype(name)) for name in DTYPES)]
    # Pairs with names, not bare types: leaving torch.serialization.safe_globals([HistoryBuffer]),
    # which other code may use, would take a bare HistoryBuffer off the list again.
    allowed: list[Callable | tuple[Callable, str]] = [
        (kind, f'{kind.__module__}.{kind.__qualname__}') for kind in types
    ]
    allowed.append((_history_statistic, 'builtins.getattr'))
    for core in ('numpy.core', 'numpy._core'):
        allowed.append((rebuild_array, f'{core}.multiarray._reconstruct'))
        allowed.append((rebuild_scalar, f'{core}.multiarray.scalar'))
    torch.serialization.add_safe_globals(allowed)


def allow_official_checkpoints() -> None:
    """Put argparse.Namespace, the official files' command line, on torch's allow-list.

    A Namespace runs nothing when it is made. Calling it again changes nothing.
    """
    torch.serialization.add_safe_globals([(argparse.Namespace, 'argparse.Namespace')])
