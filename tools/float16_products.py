"""Run a tool with float16 products that a CPU without float16 arithmetic can wait for.

    python tools/float16_products.py tools/demo.py --cfg-options \\
        optim_wrapper.type=ddetr_plugin.AutocastOptimWrapper optim_wrapper.dtype=float16

On such a CPU torch's own float16 matrix products and convolutions take many times as long as those
in float32. Here they are what a GPU's matrix units make of them: factors in float16, sums in
float32, and the result rounded to float16. All else, gradients and their scale included, is as it
is in float16.
"""

import runpy
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
PRODUCTS = (
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten.convolution_backward,
)


class Float16Products(TorchDispatchMode):
    """Matrix products and convolutions of float16 tensors are summed in float32, then rounded."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket not in PRODUCTS or not any(map(is_float16, args)):
            return function(*args, **kwargs)
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs))
        return tree_map_only(torch.Tensor, torch.Tensor.half, function(*args, **kwargs))


def is_float16(x):
    return isinstance(x, torch.Tensor) and x.dtype == torch.float16


def main():
    if len(sys.argv) < 2:
        sys.exit('usage: python tools/float16_products.py TOOL [ARGUMENT ...]')
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    with Float16Products():
        runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
