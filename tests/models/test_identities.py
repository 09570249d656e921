"""What MSDeformAttn turns into at its limits (arXiv:2010.04159, 4.1)."""

import itertools
import math
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from ddetr_plugin.models import FeatureLevels, MSDeformAttn

COMPILED = find_spec('mmcv._ext').origin != 'ddetr_plugin stand-in'
ROWS, COLS = 5, 6
KERNEL = tuple(itertools.product((-1, 0, 1), repeat=2))  # (dy, dx) of the 9 taps


def one_level(rows, cols, batch):
    return FeatureLevels.from_images([(rows, cols)], (rows, cols), [(rows, cols)] * batch, 'cpu')


def fill(linear, weight, bias):
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def deformable_convolution(picture, offsets, weight):
    """Eq. 1 and 2 of arXiv:1703.06211 by the letter, one output at a time.

    Args:
        picture: (C, H, W) float64; zero outside.
        offsets: (H, W, 9, 2) as (dy, dx), of each tap at each output.
        weight: (C_out, C, 9).
    """
    channels, rows, cols = picture.shape
    output = picture.new_zeros(len(weight), rows, cols)
    for y, x in itertools.product(range(rows), range(cols)):
        for tap, (dy, dx) in enumerate(KERNEL):
            p_y = y + dy + offsets[y, x, tap, 0].item()
            p_x = x + dx + offsets[y, x, tap, 1].item()
            sampled = picture.new_zeros(channels)
            for q_y, q_x in itertools.product(range(rows), range(cols)):
                share = max(0.0, 1 - abs(q_y - p_y)) * max(0.0, 1 - abs(q_x - p_x))
                sampled += share * picture[:, q_y, q_x]
            output[:, y, x] += weight[:, :, tap] @ sampled
    return output


def convolution_as_attention():
    """A 3 x 3 deformable convolution of 4 channels to 5, and the module that equals it.

    L = K = 1, nine heads that each see all channels, the value projection is the identity, and a
    head's output projection is the kernel's weight at its tap. The offset of a tap is its place in
    the kernel, and a linear function of the features.

    Returns:
        pictures (2, 4, H, W), offsets (2, H, W, 9, 2) as (dy, dx), weight (5, 4, 9), and what the
        module makes of them (2, 5, H, W); float64.
    """
    channels, outputs, taps = 4, 5, len(KERNEL)
    width = taps * channels
    pictures = torch.randn(2, channels, ROWS, COLS, dtype=torch.float64)
    weight = torch.randn(outputs, channels, taps, dtype=torch.float64)
    learned = torch.randn(taps, 2, width, dtype=torch.float64) * 0.3

    module = MSDeformAttn(width, num_heads=taps, num_levels=1, num_points=1).double()
    fill(module.value_proj, torch.eye(width), torch.zeros(width))
    taps_xy = torch.tensor([(dx, dy) for dy, dx in KERNEL])
    fill(module.sampling_offsets, learned.flip(1).flatten(0, 1), taps_xy.flatten())
    fill(module.attention_weights, torch.randn(taps, width), torch.randn(taps))
    mixing = torch.zeros(width, width)
    mixing[:outputs] = weight.transpose(1, 2).flatten(1)
    fill(module.output_proj, mixing, torch.zeros(width))

    # Every head sees every channel: the features stand nine times side by side.
    tokens = pictures.flatten(2).transpose(1, 2).repeat(1, 1, taps)
    levels = one_level(ROWS, COLS, batch=2)
    centres = levels.token_reference_points().double()
    with torch.no_grad():
        result = module(tokens, tokens, centres, levels)[..., :outputs]
    offsets = torch.einsum('bsc,kdc->bskd', tokens, learned).unflatten(1, (ROWS, COLS))
    return pictures, offsets, weight, result.transpose(1, 2).unflatten(2, (ROWS, COLS))


def test_one_level_and_one_point_with_identity_values_are_a_deformable_convolution():
    pictures, offsets, weight, result = convolution_as_attention()
    # Offsets that matter, some beyond the border.
    assert offsets.abs().max() > 1.5
    for picture, offset, output in zip(pictures, offsets, result):
        expected = deformable_convolution(picture, offset, weight)
        # The reference points are float32.
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not COMPILED, reason='mmcv is installed without operators')
def test_one_level_and_one_point_with_identity_values_are_mmcvs_deformable_convolution():
    from mmcv.ops import deform_conv2d

    pictures, offsets, weight, result = convolution_as_attention()
    expected = deform_conv2d(
        pictures.float(),
        offsets.flatten(3).permute(0, 3, 1, 2).float().contiguous(),
        weight.unflatten(2, (3, 3)).float().contiguous(),
        1,  # stride
        1,  # padding
    )
    torch.testing.assert_close(result.float(), expected, rtol=1e-4, atol=1e-4)


def test_without_offsets_it_is_a_pointwise_convolution():
    module = MSDeformAttn(6, num_heads=3, num_levels=1, num_points=1).double()
    fill(module.value_proj, torch.eye(6), torch.zeros(6))
    fill(module.sampling_offsets, torch.zeros(6, 6), torch.zeros(6))
    levels = one_level(ROWS, COLS, batch=1)
    tokens = torch.randn(1, ROWS * COLS, 6, dtype=torch.float64)
    centres = levels.token_reference_points().double()
    expected = module.output_proj(tokens)
    result = module(tokens, tokens, centres, levels)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('sizes', [[(4, 5)], [(3, 4), (4, 3), (2, 6)]])
def test_points_on_all_locations_are_transformer_attention_with_the_same_weights(sizes):
    """K = H * W points on the cells' centres, of every level; logits are q.k as torch has them."""
    channels, heads = 24, 4
    head_width = channels // heads
    points = math.prod(sizes[0])
    attention = nn.MultiheadAttention(channels, heads, batch_first=True).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    query_weight, key_weight, value_weight = attention.in_proj_weight.detach().chunk(3)
    query_bias, key_bias, value_bias = attention.in_proj_bias.detach().chunk(3)
    query = torch.randn(1, 7, channels, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(1, len(sizes) * points, channels, dtype=torch.float64)
    expected, weights = attention(query, memory, memory)
    assert weights.std() > 0.1 * weights.mean()  # far from uniform

    module = MSDeformAttn(channels, heads, len(sizes), points).double()
    fill(module.value_proj, value_weight, value_bias)
    fill(module.output_proj, attention.out_proj.weight, attention.out_proj.bias)
    # (W_q z + b_q) . k_j / sqrt(D) is linear in z: the keys become the weights of the logits.
    keys = (memory[0] @ key_weight.T + key_bias).unflatten(1, (heads, head_width))
    keys = keys / math.sqrt(head_width)
    logits = torch.einsum('smd,mdc->msc', keys, query_weight.unflatten(0, (heads, head_width)))
    bias = torch.einsum('smd,md->ms', keys, query_bias.view(heads, head_width))
    fill(module.attention_weights, logits.flatten(0, 1), bias.flatten())
    # Around one point for all queries, the way to a cell is the same for all.
    levels = FeatureLevels.from_images(sizes, (16, 16), [(16, 16)], 'cpu')
    reference = torch.tensor([0.25, 0.75], dtype=torch.float64)
    ways = [
        centres.double() - reference * torch.tensor([cols, rows])
        for centres, (rows, cols) in zip(levels.cell_centres(), sizes)
    ]
    offsets = torch.stack(ways).expand(heads, -1, -1, -1)  # (M, L, P, 2)
    fill(module.sampling_offsets, torch.zeros(offsets.numel(), channels), offsets.flatten())
    result = module(query, memory, reference.expand(1, 7, len(sizes), 2), levels)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)

    upstream = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, query, upstream)
    (found,) = torch.autograd.grad(result, query, upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
