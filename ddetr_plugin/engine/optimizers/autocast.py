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

    mmengine's AmpOptimWrapper refuses to run without a GPU. bfloat16 has the exponent range of
    float32. float16 has not: its gradients are computed of a scaled loss, and divided by the scale
    before they are clipped and used; a step whose gradients overflow is left out and halves the
    scale, which checkpoints hold. Shards of parameters (FSDP) must be trained in bfloat16.

    Args:
        optimizer: the torch optimizer.
        dtype: 'bfloat16' or 'float16'.
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
        parameters = (x for group in optimizer.param_groups for x in group['params'])
        device = next(parameters).device.type
        self.loss_scaler = torch.amp.GradScaler(device, enabled=dtype == 'float16')

    @contextmanager
    def optim_context(self, model):
        """The context of one forward pass of `model`: accumulation as usual, plus autocast."""
        device = next(model.parameters()).device
        with super().optim_context(model), torch.autocast(device.type, dtype=self.cast_dtype):
            yield

    def backward(self, loss, **kwargs):
        """Add the gradients of `loss`, a scalar, scaled in float16."""
        super().backward(self.loss_scaler.scale(loss), **kwargs)

    def step(self, **kwargs):
        """Clip the gradients and update the weights, unless gradients overflow."""
        self.loss_scaler.unscale_(self.optimizer)
        if self.clip_grad_kwargs:
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def state_dict(self):
        """That of the optimizer, and in float16 `loss_scaler`, as AmpOptimWrapper names it."""
        state = super().state_dict()
        if self.loss_scaler.is_enabled():
            state['loss_scaler'] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict):
        """Load a state of this or another wrapper; without a scale, the present one is kept."""
        state = dict(state_dict)
        scale = state.pop('loss_scaler', None)
        if scale and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scale)
        super().load_state_dict(state)
