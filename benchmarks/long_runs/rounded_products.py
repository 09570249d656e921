"""Run a tool with 16-bit products that a CPU without 16-bit arithmetic can wait for.

    python -m benchmarks.long_runs.rounded_products tools/demo.py --cfg-options \\
        optim_wrapper.type=ddetr_plugin.AutocastOptimWrapper optim_wrapper.dtype=float16

On such a CPU torch's own matrix products and convolutions take many times as long in float16 and
bfloat16 as in float32. Here they are what a GPU's matrix units make of them: factors in 16 bits,
sums in float32, and the result rounded to 16 bits. All else, gradients and their scale included, is
as it is in 16 bits.
"""

import runpy
import sys
from pathlib import Path

import torch

from ddetr_plugin.ops.torch_private import lookup

TorchDispatchMode = lookup('torch.utils._python_dispatch.TorchDispatchMode')
tree_map_only = lookup('torch.utils._pytree.tree_map_only')

aten = torch.ops.aten
PRODUCTS = (
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten.convolution_backward,
)


class RoundedProducts(TorchDispatchMode):
    """Matrix products and convolutions of 16-bit tensors are summed in float32, then rounded."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket not in PRODUCTS or not any(map(is_narrow, args)):
            return function(*args, **kwargs)
        # Of one product all factors have one dtype.
        dtype = next(filter(is_narrow, args)).dtype
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
        return tree_map_only(torch.Tensor, lambda x: x.to(dtype), function(*args, **kwargs))


def is_narrow(x):
    return isinstance(x, torch.Tensor) and x.dtype in (torch.float16, torch.bfloat16)


def main():
    if len(sys.argv) < 2:
        sys.exit('usage: python -m benchmarks.long_runs.rounded_products TOOL [ARGUMENT ...]')
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    with RoundedProducts():
        runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
