"""Mixed precision wherever torch.autocast works, a CPU included."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper

from ddetr_plugin.registry import OPTIM_WRAPPERS

__all__ = ['AutocastOptimWrapper']

DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """OptimWrapper whose forward pass runs under torch.autocast on the model's own device.

    mmengine's AmpOptimWrapper scales gradients and therefore refuses to run without a GPU.
    bfloat16 has the exponent range of float32, so it needs no scaling and works on CPUs.

    Args:
        optimizer: the torch optimizer.
        dtype: 'bfloat16' or 'float16'. There is no gradient scaling here: small float16 gradients
            become zero; on a GPU prefer mmengine's AmpOptimWrapper for float16.
        accumulative_counts: iterations whose gradients make one step.
        clip_grad: mmengine's clipping settings, e.g. ``dict(max_norm=0.1, norm_type=2)``.

    Raises:
        ValueError: unknown dtype.
    """

    def __init__(self, optimizer, dtype='bfloat16', accumulative_counts=1, clip_grad=None):
        if dtype not in DTYPES:
            raise ValueError(f'dtype must be one of {sorted(DTYPES)}, got {dtype!r}')
        super().__init__(optimizer, accumulative_counts=accumulative_counts, clip_grad=clip_grad)
        self.cast_dtype = DTYPES[dtype]

    @contextmanager
    def optim_context(self, model):
        """The context of one forward pass of `model`: accumulation as usual, plus autocast."""
        device = next(model.parameters()).device
        with super().optim_context(model), torch.autocast(device.type, dtype=self.cast_dtype):
            yield
