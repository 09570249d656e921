"""Shapes and inputs that the operator is measured with, and what it is compared with everywhere."""

import torch
import torch.nn.functional as nnf

from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_fused

LARGE = ((100, 134), (50, 67), (25, 34), (13, 17))
SMALL = ((20, 20), (10, 10), (5, 5), (3, 3))
# name: (batch, level sizes, queries; None for one per cell)
CASES = {
    'encoder': (1, LARGE, None),
    'decoder': (1, LARGE, 300),
    'small encoder, batch 8': (8, SMALL, None),
    'small decoder, batch 8': (8, SMALL, 80),
}
HEADS, CHANNELS, POINTS = 8, 32, 4


def make_inputs(
    batch, sizes, queries, device, heads=HEADS, channels=CHANNELS, points=POINTS, seed=0
):
    """Arguments of `ms_deform_attn` and of `ms_deform_attn_fused`, as a trained model makes them.

    All in float32. Points lie around a reference, three cells of their level away (standard
    deviation); the reference of an encoder query is its own cell, that of a decoder query is
    anywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * width for height, width in sizes)
    if queries is None:
        centres = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w)
            for h, w in sizes
        ]
        # (B, S, 2) as (x, y)
        reference = torch.cat(centres).flip(-1)[None].expand(batch, -1, -1)
        queries = tokens
    else:
        reference = torch.rand(batch, queries, 2, generator=generator)
    lead = (batch, queries, heads, len(sizes), points)
    cells = torch.tensor([(width, height) for height, width in sizes])
    offsets = torch.randn(*lead, 2, generator=generator) * 3
    pixels = reference[:, :, None, None, None] * cells[:, None] - 0.5 + offsets
    # Away from whole pixels, where slopes jump and rounding decides which one is right.
    pixels = pixels.floor() + (pixels - pixels.floor()).clamp(0.01, 0.99)
    locations = (pixels + 0.5) / cells[:, None]
    logits = torch.randn(*lead[:3], len(sizes) * points, generator=generator)
    starts = [sum(h * w for h, w in sizes[:level]) for level in range(len(sizes))]
    values = [
        torch.randn(batch, tokens, heads, channels, generator=generator),
        torch.tensor(sizes),
        torch.tensor(starts),
    ]
    reference = reference[:, :, None].expand(-1, -1, len(sizes), -1).contiguous()
    offsets = (locations - reference[:, :, None, :, None]) * cells[:, None]
    plain = [*values, locations, logits.softmax(-1).view(lead)]
    fused = [*values, reference, offsets, logits.view(lead)]
    plain, fused = [x.to(device) for x in plain], [x.to(device) for x in fused]
    # What a model differentiates: the references of an encoder are constants, those of a decoder
    # that refines boxes are detached.
    for x in (plain[0], *plain[3:], fused[0], *fused[4:]):
        x.requires_grad_()
    return plain, fused


def grid_sample_attention(value, spatial_shapes, level_start_index, locations, weights):
    """The usual implementation without native code: one grid_sample per level, then a sum."""
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    sizes = spatial_shapes.tolist()
    maps = value.split([height * width for height, width in sizes], dim=1)
    grids = 2 * locations - 1
    sampled = []
    for level, (height, width) in enumerate(sizes):
        level_map = maps[level].flatten(2).transpose(1, 2)
        level_map = level_map.reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(nnf.grid_sample(level_map, grid, align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def around(operator):
    """An operator with the arguments of `ms_deform_attn_fused`, the arithmetic in PyTorch."""

    def unfused(value, spatial_shapes, level_start_index, reference, offsets, logits):
        locations = reference[:, :, None, :, None] + offsets / spatial_shapes.flip(-1)[:, None]
        weights = logits.flatten(-2).softmax(-1).view(logits.shape)
        return operator(value, spatial_shapes, level_start_index, locations, weights)

    return unfused


# Name -> function with the arguments of `ms_deform_attn_fused`; ours first.
FUSED = {
    'ours': ms_deform_attn_fused,
    'PyTorch around ours': around(ms_deform_attn),
    'PyTorch + grid_sample': around(grid_sample_attention),
}
