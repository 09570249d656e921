"""Inputs for the operator, an oracle in scalar loops, and the devices that tests run on."""

import math

import pytest
import torch

from ddetr_plugin.ops import native_load_error
from ddetr_plugin.ops._native import cuda_load_error

# Odd on purpose: H != W, a level of one cell, levels of unequal size.
SIZES = ((7, 5), (3, 4), (1, 1))

needs_native = pytest.mark.skipif(
    native_load_error() is not None, reason=f'no native operator: {native_load_error()}'
)


# Of a test that runs our kernels on a GPU. Where a GPU is visible, it needs them.
cuda_marks = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA GPU is visible'),
    pytest.mark.skipif(
        torch.cuda.is_available() and cuda_load_error() is not None,
        reason=f'no native CUDA kernels: {cuda_load_error()}',
    ),
]


def devices():
    """The CPU always; the GPU where there is one."""
    return ['cpu', pytest.param('cuda', marks=cuda_marks)]


def levels_of(sizes, device='cpu'):
    """The (L, 2) and (L,) tensors of a list of (H, W)."""
    starts = [0]
    for height, width in sizes[:-1]:
        starts.append(starts[-1] + height * width)
    return torch.tensor(sizes, device=device), torch.tensor(starts, device=device)


def off_the_knots(locations, sizes):
    """Moves locations whose pixel coordinate is within 0.05 of an integer, where slopes jump."""
    cells = torch.tensor([(width, height) for height, width in sizes], dtype=locations.dtype)
    pixels = locations * cells[:, None] - 0.5
    fraction = pixels - pixels.floor()
    pixels = pixels.floor() + fraction.clamp(0.05, 0.95)
    return (pixels + 0.5) / cells[:, None]


def case(
    batch=2,
    queries=6,
    heads=3,
    channels=5,
    points=3,
    sizes=SIZES,
    dtype=torch.float64,
    device='cpu',
):
    """value, spatial_shapes, level_start_index, sampling_locations, attention_weights.

    About a quarter of the locations lie outside the map.
    """
    generator = torch.Generator().manual_seed(channels * 1000 + queries)
    tokens = sum(height * width for height, width in sizes)
    lead = (batch, queries, heads, len(sizes), points)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=dtype)
    locations = torch.rand(*lead, 2, generator=generator, dtype=dtype) * 1.3 - 0.15
    weights = torch.randn(*lead, generator=generator, dtype=dtype)
    tensors = (value, *levels_of(sizes), off_the_knots(locations, sizes), weights)
    return tuple(tensor.to(device) for tensor in tensors)


def fused_case(reference_size=2, shared=False, **arguments):
    """value, spatial_shapes, level_start_index, reference_points, offsets, logits.

    The points are those of `case(**arguments)`. `shared` gives all pictures the same references.
    """
    value, shapes, starts, locations, logits = case(**arguments)
    generator = torch.Generator().manual_seed(2)
    batch, queries, _, levels, points, _ = locations.shape
    reference = torch.rand(
        1 if shared else batch, queries, levels, reference_size, generator=generator
    ).to(locations)
    reference = 0.2 + 0.6 * reference
    place = reference[:, :, None, :, None]
    unit = place[..., 2:] * 0.5 / points if reference_size == 4 else 1 / shapes.flip(-1)[:, None]
    return value, shapes, starts, reference, (locations - place[..., :2]) / unit, logits


def with_grad(arguments):
    """The same arguments as leaves that want gradients; the level tensors stay."""
    return tuple(
        x.detach().clone().requires_grad_() if x.is_floating_point() else x for x in arguments
    )


def outputs_and_gradients(function, arguments, rounded_to=None):
    """Output, then gradients of value, locations and weights for a fixed grad_output.

    The latter is rounded to the dtype of the output, or first to `rounded_to`, as it is for an
    output of 16 bits that this one is compared with.
    """
    leaves = with_grad(arguments)
    output = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    grad_output = torch.randn(output.shape, generator=generator)
    grad_output = grad_output.to(rounded_to or output.dtype).to(output)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, grad_output)]


def scalar_oracle(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    """Eq. 3 in float64 loops over numbers; nothing shared with the package."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = sampling_locations.shape
    cells = value.double().tolist()
    where = sampling_locations.double().tolist()
    weight = attention_weights.double().tolist()
    output = torch.zeros(batch, queries, heads * channels, dtype=torch.float64)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                for level in range(levels):
                    height, width = spatial_shapes[level].tolist()
                    start = int(level_start_index[level])
                    for p in range(points):
                        x = where[b][q][m][level][p][0] * width - 0.5
                        y = where[b][q][m][level][p][1] * height - 0.5
                        if not (math.isfinite(x) and math.isfinite(y)):
                            continue
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if not (0 <= row < height and 0 <= column < width):
                                    continue
                                share = (1 - abs(x - column)) * (1 - abs(y - row))
                                share *= weight[b][q][m][level][p]
                                cell = cells[b][start + row * width + column][m]
                                for d in range(channels):
                                    output[b, q, m * channels + d] += share * cell[d]
    return output
