"""Shapes, dtypes and devices of the compiled operators' results, for tracing. Imported once loaded.

Tracing refuses what running would, in the same order and naming the same argument: the checks are
those of ops/ms_deform_attn.h and ops/cpu/dropout_cpu.cpp, but for the numbers in tensors.
"""

import torch
from torch import Tensor
from torch.library import register_fake

from ddetr_plugin.ops.checks import VALUE_DTYPES, compute_dtype
from ddetr_plugin.ops.torch_private import check


@register_fake('ddetr_plugin::ms_deform_attn_forward')
def _forward_fake(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    _check_inputs(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
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
    _check_inputs(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    _check_output('grad_output', grad_output, value, sampling_locations)
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
    _check_fused_inputs(
        value,
        spatial_shapes,
        level_start_index,
        reference_points,
        sampling_offsets,
        attention_logits,
    )
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
    _check_fused_inputs(
        value,
        spatial_shapes,
        level_start_index,
        reference_points,
        sampling_offsets,
        attention_logits,
    )
    for name, tensor in (('output', output), ('grad_output', grad_output)):
        _check_output(name, tensor, value, sampling_offsets)
    return (
        value.new_empty(value.shape),
        sampling_offsets.new_empty(sampling_offsets.shape),
        attention_logits.new_empty(attention_logits.shape),
        reference_points.new_empty(reference_points.shape if reference_grad else (0,)),
    )


@register_fake('ddetr_plugin::dropout')
def _dropout_fake(x: Tensor, seed: Tensor, p: float) -> Tensor:
    _check_droppable('input', x)
    _check_dropping(seed, p)
    return x.new_empty(x.shape)


@register_fake('ddetr_plugin::dropout_add')
def _dropout_add_fake(x: Tensor, residual: Tensor, seed: Tensor, p: float) -> Tensor:
    _check_droppable('input', x)
    _check_droppable_like('residual', residual, x)
    _check(
        x.dtype == torch.bfloat16 or residual.dtype == torch.float32,
        lambda: 'residual must be float32 beside a float32 input',
    )
    _check_dropping(seed, p)
    return residual.new_empty(residual.shape)


@register_fake('ddetr_plugin::relu_dropout')
def _relu_dropout_fake(x: Tensor, seed: Tensor, p: float) -> Tensor:
    _check_droppable('input', x)
    _check_dropping(seed, p)
    return x.new_empty(x.shape)


@register_fake('ddetr_plugin::relu_dropout_backward')
def _relu_dropout_backward_fake(grad_output: Tensor, output: Tensor, p: float) -> Tensor:
    _check_droppable('output', output)
    _check_droppable_like('grad_output', grad_output, output)
    _check(grad_output.dtype == output.dtype, lambda: 'grad_output must have the dtype of output')
    _check_probability(p)
    return output.new_empty(output.shape)


def _check(condition, message) -> None:
    check(condition, lambda: f'ms_deform_attn: {message()}')


def _shape(tensor: Tensor) -> tuple:
    return tuple(tensor.shape)


def _check_value(value, spatial_shapes, level_start_index) -> None:
    _check(value.dim() == 4, lambda: f'value must be (B, S, M, D), got {_shape(value)}')
    _, _, heads, channels = value.shape
    _check(heads > 0 and channels > 0, lambda: f'value must have M, D >= 1, got {_shape(value)}')
    _check(
        spatial_shapes.dim() == 2 and spatial_shapes.shape[0] > 0 and spatial_shapes.shape[1] == 2,
        lambda: f'spatial_shapes must be (L, 2) with L >= 1, got {_shape(spatial_shapes)}',
    )
    levels = spatial_shapes.shape[0]
    _check(
        level_start_index.dim() == 1 and level_start_index.shape[0] == levels,
        lambda: f'level_start_index must be (L,) with L={levels}, got {_shape(level_start_index)}',
    )
    _check(
        value.dtype in VALUE_DTYPES,
        lambda: f'value must be a floating-point tensor, got {value.dtype}',
    )
    _check_int64('spatial_shapes', spatial_shapes)
    _check_int64('level_start_index', level_start_index)
    _check(
        spatial_shapes.device.type == 'cpu' or spatial_shapes.device == value.device,
        lambda: 'spatial_shapes must be on the device of value or on the CPU',
    )
    _check(
        level_start_index.device == spatial_shapes.device,
        lambda: 'level_start_index must be on the device of spatial_shapes',
    )


def _check_int64(name, tensor) -> None:
    _check(tensor.dtype == torch.int64, lambda: f'{name} must be int64, got {tensor.dtype}')


def _check_coordinates(name, tensor, value) -> None:
    # Narrower ones are widened before they come here.
    wanted = compute_dtype(value)
    _check(
        tensor.dtype == wanted,
        lambda: f'{name} must be {wanted} with a value of {value.dtype}, got {tensor.dtype}',
    )
    _check(tensor.device == value.device, lambda: f'{name} must be on the device of value')


def _check_points(value, spatial_shapes, points_name, points, weights_name, weights) -> None:
    batch, _, heads, _ = value.shape
    levels = spatial_shapes.shape[0]
    shape = points.shape
    _check(
        len(shape) == 6
        and shape[0] == batch
        and shape[2] == heads
        and shape[3] == levels
        and shape[4] > 0
        and shape[5] == 2,
        lambda: (
            f'{points_name} must be (B, Q, M, L, P, 2) with B={batch}, M={heads}, L={levels}, '
            f'P >= 1, got {_shape(points)}'
        ),
    )
    _check(
        weights.shape == shape[:-1],
        lambda: (
            f'{weights_name} must be (B, Q, M, L, P) like {points_name} {_shape(points)}, got '
            f'{_shape(weights)}'
        ),
    )
    _check_coordinates(points_name, points, value)
    _check_coordinates(weights_name, weights, value)


def _check_inputs(value, spatial_shapes, level_start_index, locations, weights) -> None:
    _check_value(value, spatial_shapes, level_start_index)
    _check_points(
        value, spatial_shapes, 'sampling_locations', locations, 'attention_weights', weights
    )


def _check_fused_inputs(
    value, spatial_shapes, level_start_index, reference, offsets, logits
) -> None:
    _check_value(value, spatial_shapes, level_start_index)
    _check_points(value, spatial_shapes, 'sampling_offsets', offsets, 'attention_logits', logits)
    shape = reference.shape
    batch, queries, _, levels = offsets.shape[:4]
    _check(
        len(shape) == 4
        and (shape[0] == 1 or shape[0] == batch)
        and shape[1] == queries
        and shape[2] == levels
        and (shape[3] == 2 or shape[3] == 4),
        lambda: (
            f'reference_points must be (B, Q, L, 2 or 4) with B=1 or {batch}, Q={queries}, '
            f'L={levels}, got {_shape(reference)}'
        ),
    )
    _check_coordinates('reference_points', reference, value)


def _check_output(name, tensor, value, points) -> None:
    batch, _, heads, channels = value.shape
    wanted = (batch, points.shape[1], heads * channels)
    _check(
        tensor.shape == wanted,
        lambda: f'{name} must be (B, Q, M * D) = {wanted}, got {_shape(tensor)}',
    )
    _check(
        tensor.dtype == value.dtype,
        lambda: f'{name} must be {value.dtype} like value, got {tensor.dtype}',
    )
    _check(tensor.device == value.device, lambda: f'{name} must be on the device of value')


def _check_droppable(name, tensor) -> None:
    # Tensors without data, on 'meta', stand for those of any device.
    _check(tensor.device.type in ('cpu', 'meta'), lambda: f'{name} must be on the CPU')
    _check(
        tensor.dtype in (torch.float32, torch.bfloat16),
        lambda: f'{name} must be float32 or bfloat16, got {tensor.dtype}',
    )


def _check_droppable_like(name, tensor, other) -> None:
    _check_droppable(name, tensor)
    _check(
        tensor.shape == other.shape,
        lambda: f'{name} must be {_shape(other)}, got {_shape(tensor)}',
    )
    _check(tensor.device == other.device, lambda: f'{name} must be on the CPU')


def _check_dropping(seed, p) -> None:
    _check_probability(p)
    _check(
        seed.device.type in ('cpu', 'meta') and seed.dtype == torch.int64 and seed.numel() == 1,
        lambda: 'seed must be one int64 on the CPU',
    )


def _check_probability(p) -> None:
    _check(0 <= p < 1, lambda: f'p must be in [0, 1), got {p}')
