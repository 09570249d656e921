"""What the compiled operators lack: gradients and shape inference. Imported once they are loaded.

Gradients are `autograd.Function`s at the dispatcher's Autograd key: `torch.compile` and export see
one operator, and an eager call costs half of what `torch.library.register_autograd` adds.
"""

import torch
from torch import Tensor

_forward = torch.ops.ddetr_plugin.ms_deform_attn_forward.default
_backward = torch.ops.ddetr_plugin.ms_deform_attn_backward.default
_fused_forward = torch.ops.ddetr_plugin.ms_deform_attn_fused_forward.default
_fused_backward = torch.ops.ddetr_plugin.ms_deform_attn_fused_backward.default
_dropout = torch.ops.ddetr_plugin.dropout.default
_dropout_add = torch.ops.ddetr_plugin.dropout_add.default
_relu_dropout = torch.ops.ddetr_plugin.relu_dropout.default
_relu_dropout_backward = torch.ops.ddetr_plugin.relu_dropout_backward.default
_library = torch.library.Library('ddetr_plugin', 'IMPL')


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        ctx.save_for_backward(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return _forward(*arguments)

    @staticmethod
    def backward(ctx, grad_output):
        grad_value, grad_locations, grad_weights = _backward(
            grad_output, *ctx.saved_tensors, torch.are_deterministic_algorithms_enabled()
        )
        return grad_value, None, None, grad_locations, grad_weights


class _FusedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            output = _fused_forward(*arguments)
        # The output saves a second pass over the values: the softmax's gradient needs
        # <grad_output, output>.
        ctx.save_for_backward(output, *arguments)
        return output

    @staticmethod
    def backward(ctx, grad_output):
        reference_grad = ctx.needs_input_grad[3]
        grad_value, grad_offsets, grad_logits, grad_reference = _fused_backward(
            grad_output,
            *ctx.saved_tensors,
            reference_grad,
            torch.are_deterministic_algorithms_enabled(),
        )
        grad_reference = grad_reference if reference_grad else None
        return grad_value, None, None, grad_reference, grad_offsets, grad_logits


class _Dropout(torch.autograd.Function):
    """Linear in its input, and its own gradient for the same seed."""

    @staticmethod
    def forward(ctx, x, seed, p):
        ctx.save_for_backward(seed)
        ctx.p = p
        with torch._C._AutoDispatchBelowAutograd():
            return _dropout(x, seed, p)

    @staticmethod
    def backward(ctx, grad_output):
        return _dropout(grad_output, *ctx.saved_tensors, ctx.p), None, None


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, seed, p):
        ctx.save_for_backward(seed)
        ctx.p, ctx.dtype = p, x.dtype
        with torch._C._AutoDispatchBelowAutograd():
            return _dropout_add(x, residual, seed, p)

    @staticmethod
    def backward(ctx, grad_output):
        grad = None
        if ctx.needs_input_grad[0]:
            grad = _dropout(grad_output.to(ctx.dtype), *ctx.saved_tensors, ctx.p)
        return grad, grad_output, None, None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seed, p):
        with torch._C._AutoDispatchBelowAutograd():
            output = _relu_dropout(x, seed, p)
        ctx.save_for_backward(output)
        ctx.p = p
        return output

    @staticmethod
    def backward(ctx, grad_output):
        return _relu_dropout_backward(grad_output, *ctx.saved_tensors, ctx.p), None, None


def _without_derivative(operator, instead='ms_deform_attn_reference'):
    """The `autograd.Function` of an operator whose result cannot be differentiated."""

    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            with torch._C._AutoDispatchBelowAutograd():
                return operator(*arguments)

        @staticmethod
        def backward(ctx, *grads):
            raise RuntimeError(
                f'{operator} has no second derivative; use {instead} where the gradient itself '
                'must be differentiated'
            )

    return Refusing


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


for _name, _function, _operator in (
    ('ms_deform_attn_forward', _Forward, _forward),
    ('ms_deform_attn_backward', _without_derivative(_backward), _backward),
    ('ms_deform_attn_fused_forward', _FusedForward, _fused_forward),
    ('ms_deform_attn_fused_backward', _without_derivative(_fused_backward), _fused_backward),
    ('dropout', _Dropout, _dropout),
    ('dropout_add', _DropoutAdd, _dropout_add),
    ('relu_dropout', _ReluDropout, _relu_dropout),
    (
        'relu_dropout_backward',
        _without_derivative(_relu_dropout_backward, "torch's relu and dropout"),
        _relu_dropout_backward,
    ),
):
    _library.impl(_name, _differentiable(_function, _operator), 'Autograd')


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
    _check_fake_output('grad_output', grad_output, value, sampling_locations)
    return (
        value.new_empty(value.shape),
        sampling_locations.new_empty(sampling_locations.shape),
        attention_weights.new_empty(attention_weights.shape),
    )


@torch.library.register_fake('ddetr_plugin::ms_deform_attn_fused_forward')
def _fused_forward_fake(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    _check_fake(value, spatial_shapes, level_start_index, sampling_offsets, attention_logits)
    _check_fake_reference(reference_points, sampling_offsets)
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_offsets.shape[1], heads * channels)


@torch.library.register_fake('ddetr_plugin::ms_deform_attn_fused_backward')
def _fused_backward_fake(
    grad_output: Tensor,
    output: Tensor,
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    reference_grad: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_fake(value, spatial_shapes, level_start_index, sampling_offsets, attention_logits)
    _check_fake_reference(reference_points, sampling_offsets)
    for name, tensor in (('grad_output', grad_output), ('output', output)):
        _check_fake_output(name, tensor, value, sampling_offsets)
    return (
        value.new_empty(value.shape),
        sampling_offsets.new_empty(sampling_offsets.shape),
        attention_logits.new_empty(attention_logits.shape),
        reference_points.new_empty(reference_points.shape if reference_grad else (0,)),
    )


@torch.library.register_fake('ddetr_plugin::dropout')
def _dropout_fake(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake('ddetr_plugin::dropout_add')
def _dropout_add_fake(x: Tensor, residual: Tensor, seed: Tensor, p: float) -> Tensor:
    torch._check(
        x.shape == residual.shape,
        lambda: f'residual must be {tuple(x.shape)}, got {tuple(residual.shape)}',
    )
    return residual.new_empty(residual.shape)


@torch.library.register_fake('ddetr_plugin::relu_dropout')
def _relu_dropout_fake(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake('ddetr_plugin::relu_dropout_backward')
def _relu_dropout_backward_fake(grad_output: Tensor, output: Tensor, p: float) -> Tensor:
    return output.new_empty(output.shape)


def _check_fake_output(name, tensor, value, points):
    batch, _, heads, channels = value.shape
    wanted = (batch, points.shape[1], heads * channels)
    torch._check(
        tensor.shape == wanted,
        lambda: f'{name} must be (B, Q, M * D) = {wanted}, got {tuple(tensor.shape)}',
    )


def _check_fake_reference(reference, offsets):
    shape = reference.shape
    batch, queries, _, levels = offsets.shape[:4]
    torch._check(
        len(shape) == 4
        and (shape[0] == 1 or shape[0] == batch)
        and shape[1] == queries
        and shape[2] == levels
        and (shape[3] == 2 or shape[3] == 4),
        lambda: (
            f'reference_points must be (B, Q, L, 2 or 4) with B=1 or {batch}, Q={queries}, '
            f'L={levels}, got {tuple(shape)}'
        ),
    )


def _check_fake(value, spatial_shapes, level_start_index, points, weights):
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
    shape = points.shape
    torch._check(
        len(shape) == 6
        and shape[0] == batch
        and shape[2] == heads
        and shape[3] == levels
        and shape[5] == 2,
        lambda: (
            f'sampling locations or offsets must be (B, Q, M, L, P, 2) with B={batch}, M={heads}, '
            f'L={levels}, got {tuple(shape)}'
        ),
    )
    torch._check(
        weights.shape == shape[:-1],
        lambda: (
            f'attention weights or logits must be (B, Q, M, L, P) like {tuple(shape)}, '
            f'got {tuple(weights.shape)}'
        ),
    )
