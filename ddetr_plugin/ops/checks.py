"""What arguments the operator takes; one place, for the native path and the reference."""

import operator

import torch
from torch import Tensor

from ddetr_plugin.ops.torch_private import is_transformed

VALUE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_HALF_DTYPES = (torch.float16, torch.bfloat16)


def compute_dtype(value: Tensor) -> torch.dtype:
    """The dtype of coordinates, weights and sums: float32, or float64 for float64 values.

    Never 16 bits: there, neighbouring cells of a map more than 128 wide share a coordinate.
    """
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def level_sizes(spatial_shapes) -> list:
    """`spatial_shapes` as a list of [H, W] integers; reads a tensor on the host."""
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes.tolist()
    return [[int(height), int(width)] for height, width in spatial_shapes]


def plain_shapes(spatial_shapes):
    """A tensor as it is; anything else as a tuple of pairs of Python's own integers.

    Raises:
        ValueError: it is neither a tensor nor pairs of integers.
    """
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes
    try:
        pairs = tuple((height, width) for height, width in spatial_shapes)
        # Numbers of a traced graph are integers, but have no __index__ to call.
        if torch.compiler.is_compiling():
            return pairs
        # Others may have few bits, or be tensors that a sum would change in place.
        return tuple((operator.index(height), operator.index(width)) for height, width in pairs)
    except (TypeError, ValueError):
        raise ValueError(
            'spatial_shapes must be a tensor (L, 2) or pairs of integers (H, W), got '
            f'{spatial_shapes!r}'
        ) from None


def check_arguments(
    value, spatial_shapes, level_start_index, sampling_locations, attention_weights
) -> None:
    """Raises ValueError, naming the argument, when the arguments do not fit one another.

    The numbers in `spatial_shapes` and `level_start_index` are checked where that costs no
    waiting: as Python integers and in CPU tensors outside tracing.
    """
    levels = _check_value(value, spatial_shapes, level_start_index)
    _check_points(
        value,
        levels,
        ('sampling_locations', sampling_locations),
        ('attention_weights', attention_weights),
    )


def check_fused_arguments(
    value,
    spatial_shapes,
    level_start_index,
    reference_points,
    sampling_offsets,
    attention_logits,
) -> None:
    """`check_arguments` for the fused operator."""
    levels = _check_value(value, spatial_shapes, level_start_index)
    _check_points(
        value,
        levels,
        ('sampling_offsets', sampling_offsets),
        ('attention_logits', attention_logits),
    )
    _check_numbers(value, 'reference_points', reference_points)
    shape = tuple(reference_points.shape)
    batch, queries = sampling_offsets.shape[:2]
    # Number by number: tuples of traced and plain numbers may compare as unequal.
    if (
        len(shape) != 4
        or (shape[0] != 1 and shape[0] != batch)
        or shape[1] != queries
        or shape[2] != levels
        or (shape[3] != 2 and shape[3] != 4)
    ):
        raise ValueError(
            f'reference_points must be (B, Q, L, 2 or 4) with B=1 or {batch}, Q={queries}, '
            f'L={levels}, got {shape}'
        )


def _check_value(value, spatial_shapes, level_start_index) -> int:
    """Returns L."""
    if not isinstance(value, Tensor):
        raise ValueError(f'value must be a tensor, got {type(value).__name__}')
    if value.layout != torch.strided:
        raise ValueError(f'value must be a dense tensor, got one of layout {value.layout}')
    if value.dim() != 4:
        raise ValueError(f'value must be (B, S, M, D), got {tuple(value.shape)}')
    if value.dtype not in VALUE_DTYPES:
        raise ValueError(f'value must be float16, bfloat16, float32 or float64, got {value.dtype}')
    _, tokens, heads, channels = value.shape
    if heads < 1 or channels < 1:
        raise ValueError(f'value must be (B, S, M, D) with M, D >= 1, got {tuple(value.shape)}')
    return _check_levels(spatial_shapes, level_start_index, tokens, value.device)


def _check_points(value, levels, named_points, named_weights) -> None:
    """Checks (B, Q, M, L, P, 2) and (B, Q, M, L, P)."""
    for name, tensor in (named_points, named_weights):
        _check_numbers(value, name, tensor)
    (points_name, points), (weights_name, weights) = named_points, named_weights
    batch, _, heads, _ = value.shape
    shape = points.shape
    if (
        len(shape) != 6
        or shape[0] != batch
        or shape[2] != heads
        or shape[3] != levels
        or shape[4] < 1
        or shape[5] != 2
    ):
        raise ValueError(
            f'{points_name} must be (B, Q, M, L, P, 2) with B={batch}, M={heads}, '
            f'L={levels}, P >= 1, got {tuple(shape)}'
        )
    if weights.shape != shape[:-1]:
        raise ValueError(
            f'{weights_name} must be (B, Q, M, L, P) = {tuple(shape[:-1])} like '
            f'{points_name}, got {tuple(weights.shape)}'
        )


def _check_numbers(value, name, tensor) -> None:
    """Checks that coordinates or weights are a tensor of a dtype and on a device that fit."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f'{name} must be a tensor, got {type(tensor).__name__}')
    dtype = compute_dtype(value)
    if tensor.dtype not in (dtype, torch.float32, *_HALF_DTYPES):
        raise ValueError(
            f'{name} must be {dtype} or narrower with a value of {value.dtype}, got {tensor.dtype}'
        )
    if tensor.layout != torch.strided:
        raise ValueError(f'{name} must be a dense tensor, got one of layout {tensor.layout}')
    if tensor.device != value.device:
        raise ValueError(
            f'{name} must be on the device of value, {value.device}, got {tensor.device}'
        )


def _check_levels(spatial_shapes, level_start_index, tokens, device) -> int:
    """Returns L."""
    if not isinstance(spatial_shapes, Tensor):
        starts = level_start_index
        if isinstance(starts, Tensor):
            if starts.dtype != torch.int64 or starts.dim() != 1:
                raise ValueError(
                    f'level_start_index must be (L,) int64, got {tuple(starts.shape)} '
                    f'{starts.dtype}'
                )
            starts = starts.tolist() if _is_readable(starts) else None
        return _check_level_numbers(spatial_shapes, starts, tokens)
    if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or spatial_shapes.shape[0] < 1:
        raise ValueError(
            f'spatial_shapes must be (L, 2) with L >= 1, got {tuple(spatial_shapes.shape)}'
        )
    levels = spatial_shapes.shape[0]
    if not isinstance(level_start_index, Tensor):
        raise ValueError(
            'level_start_index must be a tensor (L,) when spatial_shapes is one, got '
            f'{type(level_start_index).__name__}'
        )
    if level_start_index.shape != (levels,):
        raise ValueError(
            f'level_start_index must be (L,) = ({levels},), got {tuple(level_start_index.shape)}'
        )
    for name, tensor in (
        ('spatial_shapes', spatial_shapes),
        ('level_start_index', level_start_index),
    ):
        if tensor.dtype != torch.int64 or tensor.layout != torch.strided:
            raise ValueError(
                f'{name} must be a dense tensor of int64, got {tensor.dtype} {tensor.layout}'
            )
        if tensor.device != device and tensor.device.type != 'cpu':
            raise ValueError(
                f'{name} must be on the device of value, {device}, or on the CPU, '
                f'got {tensor.device}'
            )
    if _is_readable(spatial_shapes) and _is_readable(level_start_index):
        _check_level_numbers(spatial_shapes.tolist(), level_start_index.tolist(), tokens)
    return levels


def _is_readable(tensor: Tensor) -> bool:
    """Whether its numbers are in host memory: not traced, nor in a transform of torch.func."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == 'cpu'
        and not torch.compiler.is_compiling()
        and not is_transformed(tensor)
    )


def _check_level_numbers(sizes, starts, tokens) -> int:
    """Returns L; `starts` of None are implied by `sizes`."""
    sizes = plain_shapes(sizes)
    if not sizes or any(height < 1 or width < 1 for height, width in sizes):
        raise ValueError(f'spatial_shapes must hold at least one (H, W), both >= 1, got {[*sizes]}')
    expected, start = [], 0
    for height, width in sizes:
        expected.append(start)
        start += height * width
    if start != tokens:
        raise ValueError(
            f'spatial_shapes {[*sizes]} hold {start} cells, but value has S={tokens} tokens'
        )
    if starts is not None and not isinstance(starts, (list, tuple)):
        raise ValueError(
            'level_start_index must be None, a tensor (L,) or L integers, got '
            f'{type(starts).__name__}'
        )
    if starts is not None and list(starts) != expected:
        raise ValueError(
            f'level_start_index must be {expected} for spatial_shapes {[*sizes]}, got '
            f'{list(starts)}'
        )
    return len(sizes)
