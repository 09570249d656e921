"""The operator's public functions: checks, then native code or the reference."""

import torch
from torch import Tensor

from ddetr_plugin.ops import _native
from ddetr_plugin.ops._transforms import call
from ddetr_plugin.ops.checks import (
    check_arguments,
    check_fused_arguments,
    compute_dtype,
    plain_shapes,
)
from ddetr_plugin.ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference

__all__ = ['ms_deform_attn', 'ms_deform_attn_fused']


def ms_deform_attn(
    value: Tensor,
    spatial_shapes,
    level_start_index,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted bilinear samples of every level, per head: the sum in Eq. 3 of arXiv:2010.04159.

    A sample between cells mixes its four neighbours; neighbours outside the map count as zero
    (`grid_sample` with ``align_corners=False, padding_mode='zeros'``). A location that is NaN or
    infinite reads zero and receives no gradient, whatever its weight. Coordinates, weights and
    sums are never below float32. Once differentiable, in reverse mode, also by torch.func.grad,
    vjp, jacrev and under vmap; forward mode and second derivatives raise.

    Args:
        value: (B, S, M, D) float; projected features, padded tokens already zero.
        spatial_shapes: (L, 2) int64, (H_l, W_l) in cells, on the CPU or beside `value`; or a
            sequence of pairs of integers. The sum of H_l * W_l equals S.
        level_start_index: (L,) int64, index in S of the first token of each level; may be None
            when `spatial_shapes` is a sequence.
        sampling_locations: (B, Q, M, L, P, 2) as (x, y), 0..1 over the *padded* map. Computed
            with in float64 beside a float64 value, else in float32; narrower ones are widened.
        attention_weights: (B, Q, M, L, P), normalised over L*P by the caller; dtypes as
            `sampling_locations`.

    Returns:
        (B, Q, M * D), dtype of `value`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
        NotImplementedError: an argument has a tangent of forward-mode differentiation.
    """
    spatial_shapes = plain_shapes(spatial_shapes)
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    if not _native.is_available(value):
        return ms_deform_attn_reference(
            value, spatial_shapes, level_start_index, sampling_locations, attention_weights
        )
    if not isinstance(spatial_shapes, Tensor):
        spatial_shapes, level_start_index = _native.level_tensors(spatial_shapes)
    return call(
        torch.ops.ddetr_plugin.ms_deform_attn_forward.default,
        value,
        spatial_shapes,
        level_start_index,
        *_widened(value, sampling_locations, attention_weights),
    )


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes,
    level_start_index,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn` with the arithmetic that makes its locations and weights in the kernel.

    The weights are the softmax of the logits over a head's L*P points. A point lies at
    ``(x, y) + offset / (W_l, H_l)`` of a reference (x, y), and at
    ``(cx, cy) + offset / P * (w, h) / 2`` of a reference (cx, cy, w, h) (A.4 of
    arXiv:2010.04159). Neither locations nor weights are ever in memory. Differentiable
    as `ms_deform_attn` is.

    Args:
        value: as for `ms_deform_attn`.
        spatial_shapes: as for `ms_deform_attn`.
        level_start_index: as for `ms_deform_attn`.
        reference_points: (B or 1, Q, L, 2) as (x, y) or (B or 1, Q, L, 4) as (cx, cy, w, h),
            0..1 over the *padded* map.
        sampling_offsets: (B, Q, M, L, P, 2) as (x, y), in cells for a reference (x, y).
        attention_logits: (B, Q, M, L, P).

    The last three are computed with in float64 beside a float64 value, else in float32; narrower
    ones are widened.

    Returns:
        (B, Q, M * D), dtype of `value`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
        NotImplementedError: an argument has a tangent of forward-mode differentiation.
    """
    spatial_shapes = plain_shapes(spatial_shapes)
    check_fused_arguments(
        value,
        spatial_shapes,
        level_start_index,
        reference_points,
        sampling_offsets,
        attention_logits,
    )
    if not _native.is_available(value):
        return ms_deform_attn_fused_reference(
            value,
            spatial_shapes,
            level_start_index,
            reference_points,
            sampling_offsets,
            attention_logits,
        )
    if not isinstance(spatial_shapes, Tensor):
        spatial_shapes, level_start_index = _native.level_tensors(spatial_shapes)
    return call(
        torch.ops.ddetr_plugin.ms_deform_attn_fused_forward.default,
        value,
        spatial_shapes,
        level_start_index,
        *_widened(value, reference_points, sampling_offsets, attention_logits),
    )


def _widened(value: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Coordinates and weights in the dtype that the kernels compute in."""
    dtype = compute_dtype(value)
    return [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors]
