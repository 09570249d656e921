"""Calls of the compiled operators that also torch.func can differentiate.

torch's own `register_autograd` ends in an error within torch.func.grad and what is made of it;
an `autograd.Function` with `setup_context` works there, but costs more in every eager call. So an
operator gets both, from the same formulas, and `call` chooses.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ddetr_plugin.ops.torch_private import transforms_active

_functions: dict = {}


def register(operator, setup_context, backward, vmap) -> None:
    """Gives an operator its gradient and its rule for torch.vmap.

    Args:
        operator: an overload, such as ``torch.ops.ddetr_plugin.dropout.default``.
        setup_context: ``(ctx, inputs, output)``, of `torch.library.register_autograd`.
        backward: ``(ctx, *grads)``, likewise.
        vmap: ``(info, in_dims, *arguments)``, of `torch.library.register_vmap`.
    """
    torch.library.register_autograd(operator, backward, setup_context=setup_context)
    torch.library.register_vmap(operator, vmap)
    methods = dict(
        forward=lambda *arguments: operator(*arguments),
        setup_context=setup_context,
        backward=backward,
        vmap=vmap,
        jvp=lambda ctx, *tangents: _refuse(operator),
    )
    methods = {name: staticmethod(method) for name, method in methods.items()}
    _functions[operator] = type(f'{operator}', (torch.autograd.Function,), methods)


@torch.compiler.allow_in_graph
def call(operator, *arguments):
    """``operator(*arguments)``, differentiable once in reverse mode, also within torch.func.

    Raises:
        NotImplementedError: an argument has a tangent of forward-mode differentiation.
    """
    for argument in arguments:
        if isinstance(argument, Tensor) and forward_ad.unpack_dual(argument).tangent is not None:
            _refuse(operator)
    if transforms_active():
        return _functions[operator].apply(*arguments)
    return operator(*arguments)


def _refuse(operator):
    raise NotImplementedError(
        f'{operator} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian, dual '
        'tensors); reverse mode is supported: backward(), torch.func.grad, vjp, jacrev'
    )
