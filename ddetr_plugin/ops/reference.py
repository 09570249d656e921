"""The definition of the operator in plain PyTorch: oracle, and fallback without native code."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ddetr_plugin.ops.checks import (
    check_arguments,
    check_fused_arguments,
    compute_dtype,
    level_sizes,
    plain_shapes,
)

__all__ = [
    'ms_deform_attn_fused_reference',
    'ms_deform_attn_reference',
    'sampling_locations',
]

# A location far from every map of at least one cell.
OUTSIDE = -2.0


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes,
    level_start_index,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The sum in Eq. 3 of arXiv:2010.04159 by `grid_sample`, on any device.

    Arguments, result and errors are those of `ms_deform_attn`. Reads `spatial_shapes` on the
    host, so on a GPU every call waits for it.
    """
    spatial_shapes = plain_shapes(spatial_shapes)
    check_arguments(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    return _sum_of_samples(value, spatial_shapes, sampling_locations, attention_weights)


def _sum_of_samples(
    value: Tensor, spatial_shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """`ms_deform_attn_reference` of arguments that were checked."""
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    if value.numel() == 0 or sampling_locations.numel() == 0:
        # Multiplying by zero keeps the result differentiable.
        nothing = value.sum() + (sampling_locations.sum() + attention_weights.sum()).to(value.dtype)
        return value.new_zeros(batch, queries, heads * channels) + 0 * nothing
    dtype = compute_dtype(value)
    per_head = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (B*M, D, S)
    # A location that is no number reads zero and has no gradient; so does any two maps away,
    # and clamping there keeps grid_sample's integers in range.
    locations = sampling_locations.to(dtype).nan_to_num(nan=OUTSIDE, posinf=OUTSIDE, neginf=OUTSIDE)
    locations = locations.clamp(OUTSIDE, 3.0)
    # grid_sample's frame is -1..1 where ours is 0..1.
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P, 2)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P)
    maps = []
    start = 0
    for height, width in level_sizes(spatial_shapes):
        stop = start + height * width
        maps.append(per_head[..., start:stop].unflatten(-1, (height, width)))
        start = stop
    output = _level_sum(maps[0], grids[:, :, 0], weights[:, :, 0])
    for level in range(1, len(maps)):
        output = output + _level_sum(maps[level], grids[:, :, level], weights[:, :, level])
    output = output.view(batch, heads, queries, channels).transpose(1, 2)
    return output.reshape(batch, queries, heads * channels).to(value.dtype)


def _level_sum(level_map: Tensor, grid: Tensor, weights: Tensor) -> Tensor:
    """The part (N, Q, D) of a level's map (N, D, H, W); of grid (N, Q, P, 2), weights (N, Q, P)."""
    sampled = grid_sample(
        level_map, grid, mode='bilinear', padding_mode='zeros', align_corners=False
    )  # (N, D, Q, P)
    # Not einsum, which autocast would let sum in 16 bits.
    return (sampled * weights[:, None]).sum(-1).transpose(1, 2)


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes,
    level_start_index,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Softmax and sampling locations in PyTorch, then `ms_deform_attn_reference`.

    Arguments, result and errors are those of `ms_deform_attn_fused`.
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
    dtype = compute_dtype(value)
    locations = sampling_locations(
        reference_points.to(dtype), sampling_offsets.to(dtype), spatial_shapes
    )
    weights = attention_logits.to(dtype).flatten(-2).softmax(-1).view(attention_logits.shape)
    return _sum_of_samples(value, spatial_shapes, locations, weights)


def sampling_locations(
    reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes
) -> Tensor:
    """Where the points of `ms_deform_attn_fused` lie (A.4 of arXiv:2010.04159).

    ``(x, y) + offset / (W_l, H_l)`` of a reference (x, y), and
    ``(cx, cy) + offset / P * (w, h) / 2`` of a reference (cx, cy, w, h). A point of which a number
    is NaN or infinite lies outside of every map, at -2.

    Args:
        reference_points: (B or 1, Q, L, 2 or 4) float, 0..1 over the *padded* map.
        sampling_offsets: (B, Q, M, L, P, 2) as (x, y), dtype and device of the references.
        spatial_shapes: (L, 2) int64, (H_l, W_l) in cells, or L pairs of integers.

    Returns:
        (B, Q, M, L, P, 2) as (x, y), 0..1 over the padded map: what `ms_deform_attn` takes.

    Raises:
        ValueError: shapes do not fit; the message names the argument.
    """
    sizes = level_sizes(plain_shapes(spatial_shapes))
    reference_shape, offset_shape = tuple(reference_points.shape), tuple(sampling_offsets.shape)
    fits = len(reference_shape) == 4 and len(offset_shape) == 6 and len(sizes) == offset_shape[3]
    if (
        not fits
        or reference_shape[0] not in (1, offset_shape[0])
        or reference_shape[1:] not in [(offset_shape[1], offset_shape[3], n) for n in (2, 4)]
        or offset_shape[5] != 2
    ):
        raise ValueError(
            'reference_points must be (B or 1, Q, L, 2 or 4), sampling_offsets (B, Q, M, L, P, 2) '
            f'and spatial_shapes L pairs, got {reference_shape}, {offset_shape} and '
            f'{sizes}'
        )
    reference, points = reference_points[:, :, None, :, None], offset_shape[4]
    offsets = sampling_offsets
    # What makes a location that is no number must stay out of the products: 0 * NaN is not 0.
    known = reference.isfinite().all(-1, keepdim=True) & offsets.isfinite().all(-1, keepdim=True)
    reference, offsets = torch.where(known, reference, 0.0), torch.where(known, offsets, 0.0)
    if reference.shape[-1] == 2:
        cells = offsets.new_tensor([(width, height) for height, width in sizes])
        locations = reference + offsets / cells[:, None]
    else:
        locations = reference[..., :2] + offsets / points * reference[..., 2:] * 0.5
    return torch.where(known, locations, OUTSIDE)
