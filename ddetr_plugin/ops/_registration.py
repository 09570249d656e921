"""What the compiled operators lack: gradients here, shape inference and torch.vmap beside it.

Imported once the operators are loaded. Gradients are `torch.library.register_autograd`'s, so that
`torch.compile` and export see one operator; `_transforms.call` takes them through torch.func.
"""

import torch

from ddetr_plugin.ops import _batching, _fake_kernels  # noqa: F401  (the latter registers, too)
from ddetr_plugin.ops._transforms import call, register

_operators = torch.ops.ddetr_plugin
_backward = _operators.ms_deform_attn_backward.default
_fused_backward = _operators.ms_deform_attn_fused_backward.default
_dropout = _operators.dropout.default
_relu_dropout_backward = _operators.relu_dropout_backward.default


def _save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gradient(ctx, grad_output):
    grad_value, grad_locations, grad_weights = call(
        _backward, grad_output, *ctx.saved_tensors, torch.are_deterministic_algorithms_enabled()
    )
    return grad_value, None, None, grad_locations, grad_weights


def _save_output_and_inputs(ctx, inputs, output):
    # The output saves a second pass over the values: the softmax's gradient needs
    # <grad_output, output>.
    ctx.save_for_backward(output, *inputs)


def _fused_gradient(ctx, grad_output):
    reference_grad = ctx.needs_input_grad[3]
    grad_value, grad_offsets, grad_logits, grad_reference = call(
        _fused_backward,
        grad_output,
        *ctx.saved_tensors,
        reference_grad,
        torch.are_deterministic_algorithms_enabled(),
    )
    grad_reference = grad_reference if reference_grad else None
    return grad_value, None, None, grad_reference, grad_offsets, grad_logits


def _save_seed(ctx, inputs, output):
    *tensors, seed, ctx.p = inputs
    ctx.dtype = tensors[0].dtype
    ctx.save_for_backward(seed)


def _dropout_gradient(ctx, grad_output):
    """Dropout is linear in its input, and its own gradient for the same seed."""
    return call(_dropout, grad_output, *ctx.saved_tensors, ctx.p), None, None


def _dropout_add_gradient(ctx, grad_output):
    grad = None
    if ctx.needs_input_grad[0]:
        grad = call(_dropout, grad_output.to(ctx.dtype), *ctx.saved_tensors, ctx.p)
    return grad, grad_output, None, None


def _save_output(ctx, inputs, output):
    ctx.save_for_backward(output)
    ctx.p = inputs[2]


def _relu_dropout_gradient(ctx, grad_output):
    return call(_relu_dropout_backward, grad_output, *ctx.saved_tensors, ctx.p), None, None


def _save_nothing(ctx, inputs, output):
    pass


def _refusing(name, instead):
    """The gradient of an operator whose result cannot be differentiated."""

    def gradient(ctx, *grads):
        raise RuntimeError(
            f'ddetr_plugin.{name}.default has no second derivative; use {instead} where the '
            'gradient itself must be differentiated'
        )

    return gradient


for _name, _setup_context, _formula, _vmap in (
    ('ms_deform_attn_forward', _save_inputs, _gradient, _batching.forward),
    (
        'ms_deform_attn_backward',
        _save_nothing,
        _refusing('ms_deform_attn_backward', 'ms_deform_attn_reference'),
        _batching.backward,
    ),
    (
        'ms_deform_attn_fused_forward',
        _save_output_and_inputs,
        _fused_gradient,
        _batching.fused_forward,
    ),
    (
        'ms_deform_attn_fused_backward',
        _save_nothing,
        _refusing('ms_deform_attn_fused_backward', 'ms_deform_attn_fused_reference'),
        _batching.fused_backward,
    ),
    ('dropout', _save_seed, _dropout_gradient, None),
    ('dropout_add', _save_seed, _dropout_add_gradient, None),
    ('relu_dropout', _save_output, _relu_dropout_gradient, None),
    (
        'relu_dropout_backward',
        _save_nothing,
        _refusing('relu_dropout_backward', "torch's relu and dropout"),
        None,
    ),
):
    _operator = getattr(_operators, _name).default
    register(_operator, _setup_context, _formula, _vmap or _batching.one_by_one(_operator))
