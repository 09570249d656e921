"""Dropout that costs next to nothing on a CPU, alone and with what stands beside it in a layer.

torch draws a CPU's random numbers one after the other, in one thread. The native operator's mask
is a function of a seed and the position (Philox4x32-10): all threads draw at once, nothing is
stored, and the backward pass draws the mask again. The seed comes from torch's generator, so
`torch.manual_seed`, saved random states and activation checkpointing work as ever.

On other devices and for other dtypes than float32 and bfloat16 these are torch's own functions.
"""

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ddetr_plugin.ops import _native
from ddetr_plugin.ops._transforms import call

__all__ = ['dropout', 'dropout_add', 'relu_dropout']


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zeroes each element with probability `p` and divides the others by 1 - p.

    Args:
        x: any shape, float.
        p: 0 <= p <= 1.
        training: False returns `x` itself.

    Returns:
        Shape and dtype of `x`.

    Raises:
        ValueError: `p` is out of range.
    """
    _check(p)
    if not training or p == 0:
        return x
    if _is_fast(x, p):
        return call(torch.ops.ddetr_plugin.dropout.default, x, _seed(), p)
    return nnf.dropout(x, p)


def dropout_add(x: Tensor, residual: Tensor, p: float, training: bool = True) -> Tensor:
    """``residual + dropout(x, p)`` in one pass over memory.

    Args:
        x: any shape, float.
        residual: like `x`; may have a wider dtype.
        p: 0 <= p <= 1.
        training: False is ``residual + x``.

    Returns:
        Shape of `x`, dtype of the sum.

    Raises:
        ValueError: `p` is out of range.
    """
    _check(p)
    if not training or p == 0:
        return residual + x
    same = x.shape == residual.shape and residual.dtype in (x.dtype, torch.float32)
    if same and _is_fast(x, p) and _is_fast(residual, p):
        return call(torch.ops.ddetr_plugin.dropout_add.default, x, residual, _seed(), p)
    return residual + nnf.dropout(x, p)


def relu_dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """``dropout(relu(x), p)`` in one pass over memory.

    Args:
        x: any shape, float.
        p: 0 <= p <= 1.
        training: False is ``relu(x)``.

    Returns:
        Shape and dtype of `x`.

    Raises:
        ValueError: `p` is out of range.
    """
    _check(p)
    if not training or p == 0:
        return x.relu()
    if _is_fast(x, p):
        return call(torch.ops.ddetr_plugin.relu_dropout.default, x, _seed(), p)
    return nnf.dropout(x.relu(), p)


def _check(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f'the probability of dropout must be in [0, 1], got {p}')


def _is_fast(x: Tensor, p: float) -> bool:
    return (
        p < 1
        and x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.bfloat16)
        and _native.native_load_error() is None
    )


def _seed() -> Tensor:
    # A tensor, not a number: a traced graph then draws anew in every call.
    return torch.randint(-(2**63), 2**63 - 1, (1,), device='cpu')
