"""torch.vmap of the compiled operators: the new dimension joins the batch. Imported once loaded."""

import torch
from torch import Tensor

from ddetr_plugin.ops._transforms import call

_forward = torch.ops.ddetr_plugin.ms_deform_attn_forward.default
_backward = torch.ops.ddetr_plugin.ms_deform_attn_backward.default
_fused_forward = torch.ops.ddetr_plugin.ms_deform_attn_fused_forward.default
_fused_backward = torch.ops.ddetr_plugin.ms_deform_attn_fused_backward.default


class _Batch:
    """V mapped calls with B pictures each as one call with V * B."""

    def __init__(self, mapped: int, value: Tensor, dimension: int | None):
        self.mapped = mapped
        self.pictures = self._first(value, dimension).shape[1]

    def _first(self, tensor: Tensor, dimension: int | None) -> Tensor:
        """(V, ...), repeated where it is the same for all calls."""
        if dimension is None:
            return tensor.expand(self.mapped, *tensor.shape)
        return tensor.movedim(dimension, 0)

    def fold(self, tensor: Tensor, dimension: int | None) -> Tensor:
        """(V * B, ...); one picture is repeated where it stands for all."""
        tensor = self._first(tensor, dimension)
        return tensor.expand(self.mapped, self.pictures, *tensor.shape[2:]).flatten(0, 1)

    def is_shared(self, tensor: Tensor, dimension: int | None) -> bool:
        """Whether one picture stands for all."""
        return self._first(tensor, dimension).shape[1] == 1

    def unfold(self, tensor: Tensor) -> Tensor:
        """(V, B, ...)."""
        return tensor.unflatten(0, (self.mapped, self.pictures))


def _refuse_mapped_levels(shapes_dimension, starts_dimension) -> None:
    for name, dimension in (
        ('spatial_shapes', shapes_dimension),
        ('level_start_index', starts_dimension),
    ):
        if dimension is not None:
            raise ValueError(
                f'{name} must be the same for all calls of torch.vmap; give it in_dims=None'
            )


def _map(operator, before, info, in_dims, arguments):
    """Calls the operator with all tensors but the levels folded.

    Args:
        operator: what to call.
        before: how many tensors come before `value`.
        info: of torch.vmap.
        in_dims: one per argument.
        arguments: of `operator`.

    Returns:
        The results, and the `_Batch` that unfolds them.
    """
    levels = (before + 1, before + 2)
    _refuse_mapped_levels(*(in_dims[i] for i in levels))
    batch = _Batch(info.batch_size, arguments[before], in_dims[before])
    folded = [
        batch.fold(argument, in_dims[i])
        if isinstance(argument, Tensor) and i not in levels
        else argument
        for i, argument in enumerate(arguments)
    ]
    return call(operator, *folded), batch


def forward(info, in_dims, *arguments):
    output, batch = _map(_forward, 0, info, in_dims, arguments)
    return batch.unfold(output), 0


def backward(info, in_dims, *arguments):
    grads, batch = _map(_backward, 1, info, in_dims, arguments)
    return tuple(map(batch.unfold, grads)), (0, 0, 0)


def fused_forward(info, in_dims, *arguments):
    output, batch = _map(_fused_forward, 0, info, in_dims, arguments)
    return batch.unfold(output), 0


def fused_backward(info, in_dims, *arguments):
    (*grads, grad_reference), batch = _map(_fused_backward, 2, info, in_dims, arguments)
    grads = [batch.unfold(grad) for grad in grads]
    reference, reference_grad = 5, 8
    if not arguments[reference_grad]:
        return (*grads, grad_reference), (0, 0, 0, None)
    grad_reference = batch.unfold(grad_reference)
    if batch.is_shared(arguments[reference], in_dims[reference]):
        grad_reference = grad_reference.sum(1, keepdim=True)
    return (*grads, grad_reference), (0, 0, 0, 0)


def one_by_one(operator):
    """The rule of an operator that is called once for each: dropout's masks go by position."""

    def rule(info, in_dims, *arguments):
        calls = [
            call(
                operator,
                *(
                    argument if dimension is None else argument.select(dimension, i)
                    for argument, dimension in zip(arguments, in_dims, strict=True)
                ),
            )
            for i in range(info.batch_size)
        ]
        return torch.stack(calls), 0

    return rule
