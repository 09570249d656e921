"""Tensors that depend on a size alone, kept for the next batch of that size."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

__all__ = ['SizeCache']


class SizeCache:
    """The last few results of a computation, by what they depend on.

    Args:
        capacity: results that are kept; the one not asked for the longest goes first.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._kept: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The result of `compute`, computed only if that of an equal `key` is not kept.

        Nothing is kept while a model is compiled: the compiler fuses what it sees.

        Args:
            key: all that the result depends on, its device included.
            compute: makes the result; needs no gradient.
        """
        if torch.compiler.is_compiling():
            return compute()
        # Autograd refuses tensors of inference mode: a training step computes its own.
        key = (key, torch.is_inference_mode_enabled())
        result = self._kept.pop(key, None)
        if result is None:
            result = compute()
            if len(self._kept) == self.capacity:
                del self._kept[next(iter(self._kept))]
        self._kept[key] = result
        return result
