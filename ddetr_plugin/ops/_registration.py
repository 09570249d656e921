"""What the compiled operators lack: gradients here, shape inference and torch.vmap beside it.

Imported once the operators are loaded. Gradients are `autograd.Function`s at the dispatcher's
Autograd key: `torch.compile` and export see one operator, an eager call costs half of what
`torch.library.register_autograd` adds, and torch.func's transforms nest.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ddetr_plugin.ops import _batching, _fake_kernels  # noqa: F401  (they register, too)

_forward = torch.ops.ddetr_plugin.ms_deform_attn_forward.default
_backward = torch.ops.ddetr_plugin.ms_deform_attn_backward.default
_fused_forward = torch.ops.ddetr_plugin.ms_deform_attn_fused_forward.default
_fused_backward = torch.ops.ddetr_plugin.ms_deform_attn_fused_backward.default
_dropout = torch.ops.ddetr_plugin.dropout.default
_dropout_add = torch.ops.ddetr_plugin.dropout_add.default
_relu_dropout = torch.ops.ddetr_plugin.relu_dropout.default
_relu_dropout_backward = torch.ops.ddetr_plugin.relu_dropout_backward.default
_library = torch.library.Library('ddetr_plugin', 'IMPL')


def _below_autograd(operator, *arguments):
    """Inside an `autograd.Function`: what the operator does without this derivative."""
    if not torch._C._are_functorch_transforms_active():
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)
    # The Function has switched off derivatives; those of transforms further out are still wanted.
    with (
        torch.enable_grad(),
        forward_ad._set_fwd_grad_enabled(True),
        torch._C._AutoDispatchBelowAutograd(),
    ):
        return operator(*arguments)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        ctx.save_for_backward(*arguments)
        return _below_autograd(_forward, *arguments)

    @staticmethod
    def backward(ctx, grad_output):
        grad_value, grad_locations, grad_weights = _backward(
            grad_output, *ctx.saved_tensors, torch.are_deterministic_algorithms_enabled()
        )
        return grad_value, None, None, grad_locations, grad_weights


class _FusedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *arguments):
        output = _below_autograd(_fused_forward, *arguments)
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
        return _below_autograd(_dropout, x, seed, p)

    @staticmethod
    def backward(ctx, grad_output):
        return _dropout(grad_output, *ctx.saved_tensors, ctx.p), None, None


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, seed, p):
        ctx.save_for_backward(seed)
        ctx.p, ctx.dtype = p, x.dtype
        return _below_autograd(_dropout_add, x, residual, seed, p)

    @staticmethod
    def backward(ctx, grad_output):
        grad = None
        if ctx.needs_input_grad[0]:
            grad = _dropout(grad_output.to(ctx.dtype), *ctx.saved_tensors, ctx.p)
        return grad, grad_output, None, None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seed, p):
        output = _below_autograd(_relu_dropout, x, seed, p)
        ctx.save_for_backward(output)
        ctx.p = p
        return output

    @staticmethod
    def backward(ctx, grad_output):
        return _relu_dropout_backward(grad_output, *ctx.saved_tensors, ctx.p), None, None


def _without_derivative(operator, instead):
    """The `autograd.Function` of an operator whose result cannot be differentiated."""

    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arguments):
            return _below_autograd(operator, *arguments)

        @staticmethod
        def backward(ctx, *grads):
            raise RuntimeError(
                f'{operator} has no second derivative; use {instead} where the gradient itself '
                'must be differentiated'
            )

    return Refusing


def _refuse_tangents(operator, arguments):
    """Raises where forward-mode differentiation is under way and would lose a tangent here."""
    if torch._C._is_fwd_grad_enabled() and any(
        forward_ad.unpack_dual(argument).tangent is not None
        for argument in arguments
        if isinstance(argument, Tensor)
    ):
        raise NotImplementedError(
            f'{operator} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian, dual '
            'tensors); reverse mode is supported: backward(), torch.func.grad, vjp, jacrev'
        )


def _apply(function, arguments):
    """`function.apply`, also at one level of torch.func's transforms."""
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    from torch._functorch.autograd_function import enable_single_level_autograd_function

    # The dispatcher has come to this level and will go to the next one below autograd; Function's
    # own `apply` would start again at the innermost one.
    with enable_single_level_autograd_function():
        return super(torch.autograd.Function, function).apply(*arguments)


def _differentiable(function, operator):
    """The Autograd kernel: `function` where a gradient is wanted, else straight to `operator`."""

    def kernel(*arguments):
        if forward_ad._current_level >= 0:
            _refuse_tangents(operator, arguments)
        if torch.is_grad_enabled() and any(
            argument.requires_grad for argument in arguments if isinstance(argument, Tensor)
        ):
            return _apply(function, arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    return kernel


for _name, _function, _operator in (
    ('ms_deform_attn_forward', _Forward, _forward),
    (
        'ms_deform_attn_backward',
        _without_derivative(_backward, 'ms_deform_attn_reference'),
        _backward,
    ),
    ('ms_deform_attn_fused_forward', _FusedForward, _fused_forward),
    (
        'ms_deform_attn_fused_backward',
        _without_derivative(_fused_backward, 'ms_deform_attn_fused_reference'),
        _fused_backward,
    ),
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
