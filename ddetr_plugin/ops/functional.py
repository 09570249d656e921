"""The operator's public function: checks, then native code or the reference."""

import torch
from torch import Tensor

from ddetr_plugin.ops import _native
from ddetr_plugin.ops.checks import check_arguments, compute_dtype
from ddetr_plugin.ops.reference import ms_deform_attn_reference

__all__ = ['ms_deform_attn']


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
    infinite reads zero and receives no gradient. Coordinates, weights and sums are never below
    float32. Once differentiable.

    Args:
        value: (B, S, M, D) float; projected features, padded tokens already zero.
        spatial_shapes: (L, 2) int64, (H_l, W_l) in cells, on the CPU or beside `value`; or a
            sequence of pairs of integers. The sum of H_l * W_l equals S.
        level_start_index: (L,) int64, index in S of the first token of each level; may be None
            when `spatial_shapes` is a sequence.
        sampling_locations: (B, Q, M, L, P, 2) as (x, y), 0..1 over the *padded* map. float64
            for a float64 value, else float32 (16 bits are taken and widened).
        attention_weights: (B, Q, M, L, P), normalised over L*P by the caller; dtypes as
            `sampling_locations`.

    Returns:
        (B, Q, M * D), dtype of `value`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
    """
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    if not _native.is_available(value):
        return ms_deform_attn_reference(
            value, spatial_shapes, level_start_index, sampling_locations, attention_weights
        )
    if not isinstance(spatial_shapes, Tensor):
        spatial_shapes, level_start_index = _native.level_tensors(spatial_shapes)
    dtype = compute_dtype(value)
    # The GPU kernels widen 16-bit values as they read them, the CPU kernels do not.
    widen = value.dtype != dtype and value.device.type != 'cuda'
    output = torch.ops.ddetr_plugin.ms_deform_attn_forward.default(
        value.to(dtype) if widen else value,
        spatial_shapes,
        level_start_index,
        sampling_locations if sampling_locations.dtype == dtype else sampling_locations.to(dtype),
        attention_weights if attention_weights.dtype == dtype else attention_weights.to(dtype),
    )
    return output if output.dtype == value.dtype else output.to(value.dtype)
