"""Shapes and dtypes of the compiled operators' results, for tracing. Imported once loaded."""

import torch
from torch import Tensor
from torch.library import register_fake


@register_fake('ddetr_plugin::ms_deform_attn_forward')
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


@register_fake('ddetr_plugin::ms_deform_attn_backward')
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


@register_fake('ddetr_plugin::ms_deform_attn_fused_forward')
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


@register_fake('ddetr_plugin::ms_deform_attn_fused_backward')
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


@register_fake('ddetr_plugin::dropout')
def _dropout_fake(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)


@register_fake('ddetr_plugin::dropout_add')
def _dropout_add_fake(x: Tensor, residual: Tensor, seed: Tensor, p: float) -> Tensor:
    torch._check(
        x.shape == residual.shape,
        lambda: f'residual must be {tuple(x.shape)}, got {tuple(residual.shape)}',
    )
    return residual.new_empty(residual.shape)


@register_fake('ddetr_plugin::relu_dropout')
def _relu_dropout_fake(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)


@register_fake('ddetr_plugin::relu_dropout_backward')
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
