"""Counts what would make the host wait for a GPU, on any device."""

import weakref
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = ('_local_scalar_dense', 'nonzero', 'masked_select', 'unique', 'repeat_interleave.Tensor')


class _Watch(TorchDispatchMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix('aten.')
        if name.startswith(_READS):
            self.seen.append(name)
        # A mask as an index is turned into numbers on the host.
        if name.startswith('index') and len(args) > 1 and isinstance(args[1], (list, tuple)):
            masks = [i for i in args[1] if isinstance(i, torch.Tensor) and i.dtype == torch.bool]
            self.seen.extend(f'{name} with a mask' for _ in masks)
        return func(*args, **(kwargs or {}))


@contextmanager
def count_transfers():
    """Yields a list that receives the name of every operation that brings numbers to the host.

    Python's numbers from tensors (`item`, `bool`, masks as indices) and `cpu`, `tolist`, `numpy`
    of tensors that are not on the way from a `cpu` already.
    """
    seen = []
    # Another tensor may get the id of one that is gone.
    on_host = {}
    cpu, tolist, numpy = torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy

    def watched_cpu(self, *args, **kwargs):
        seen.append('cpu')
        result = cpu(self, *args, **kwargs)
        on_host[id(result)] = weakref.ref(result)
        return result

    def watched(original, name):
        def method(self, *args, **kwargs):
            if on_host.get(id(self), lambda: None)() is not self:
                seen.append(name)
            return original(self, *args, **kwargs)

        return method

    with (
        mock.patch.object(torch.Tensor, 'cpu', watched_cpu),
        mock.patch.object(torch.Tensor, 'tolist', watched(tolist, 'tolist')),
        mock.patch.object(torch.Tensor, 'numpy', watched(numpy, 'numpy')),
        _Watch(seen),
    ):
        yield seen
