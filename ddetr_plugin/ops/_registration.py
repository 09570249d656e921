"""What the compiled operators lack: gradients and shape inference. Imported once they are loaded.

Gradients are `autograd.Function`s at the dispatcher's Autograd key: `torch.compile` and export see
one operator, and an eager call costs half of what `torch.library.register_autograd` adds.
"""

import warnings

import torch
from torch import Tensor

_forward = torch.ops.ddetr_plugin.ms_deform_attn_forward.default
_backward = torch.ops.ddetr_plugin.ms_deform_attn_backward.default
_library = torch.library.Library('ddetr_plugin', 'IMPL')


def _alert_not_deterministic():
    """Like torch's own operators: an error, or a warning where the user chose so."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        'ms_deform_attn_backward has no deterministic implementation on CUDA: it adds floats in '
        'the order in which threads arrive. Use torch.use_deterministic_algorithms(True, '
        'warn_only=True), or ms_deform_attn on the CPU'
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=2)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, value, spatial_shapes, level_start_index, sampling_locations, attention_weights
    ):
        arguments = (
            value,
            spatial_shapes,
            level_start_index,
            sampling_locations,
            attention_weights,
        )
        ctx.save_for_backward(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return _forward(*arguments)

    @staticmethod
    def backward(ctx, grad_output):
        deterministic = False
        if grad_output.is_cuda:
            _alert_not_deterministic()
        grads = _backward(grad_output, *ctx.saved_tensors, deterministic)
        return grads[0], None, None, grads[1], grads[2]


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return _backward(*arguments)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            'ms_deform_attn has no second derivative; use ms_deform_attn_reference where the '
            'gradient itself must be differentiated'
        )


def _differentiable(function, operator):
    """The Autograd kernel: `function` where a gradient is wanted, else straight to `operator`."""

    def kernel(*arguments):
        if torch.is_grad_enabled() and any(
            argument.requires_grad for argument in arguments if isinstance(argument, Tensor)
        ):
            return function.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    return kernel


_library.impl('ms_deform_attn_forward', _differentiable(_Forward, _forward), 'Autograd')
_library.impl('ms_deform_attn_backward', _differentiable(_Backward, _backward), 'Autograd')


@torch.library.register_fake('ddetr_plugin::ms_deform_attn_forward')
def _forward_fake(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    _check_fake(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_locations.shape[1], heads * channels)


@torch.library.register_fake('ddetr_plugin::ms_deform_attn_backward')
def _backward_fake(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_fake(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    batch, _, heads, channels = value.shape
    wanted = (batch, sampling_locations.shape[1], heads * channels)
    torch._check(
        grad_output.shape == wanted,
        lambda: f'grad_output must be (B, Q, M * D) = {wanted}, got {tuple(grad_output.shape)}',
    )
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


def _check_fake(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    """The shape checks of ops/ms_deform_attn.h, so that tracing refuses what running would."""
    torch._check(value.dim() == 4, lambda: f'value must be (B, S, M, D), got {tuple(value.shape)}')
    torch._check(
        spatial_shapes.dim() == 2 and spatial_shapes.shape[1] == 2,
        lambda: f'spatial_shapes must be (L, 2), got {tuple(spatial_shapes.shape)}',
    )
    levels = spatial_shapes.shape[0]
    torch._check(
        level_start_index.dim() == 1 and level_start_index.shape[0] == levels,
        lambda: (
            f'level_start_index must be (L,) with L={levels}, got {tuple(level_start_index.shape)}'
        ),
    )
    batch, _, heads, _ = value.shape
    shape = sampling_locations.shape
    torch._check(
        len(shape) == 6
        and shape[0] == batch
        and shape[2] == heads
        and shape[3] == levels
        and shape[5] == 2,
        lambda: (
            f'sampling_locations must be (B, Q, M, L, P, 2) with B={batch}, M={heads}, '
            f'L={levels}, got {tuple(shape)}'
        ),
    )
    torch._check(
        attention_weights.shape == shape[:-1],
        lambda: (
            f'attention_weights must be (B, Q, M, L, P) like sampling_locations '
            f'{tuple(shape)}, got {tuple(attention_weights.shape)}'
        ),
    )
