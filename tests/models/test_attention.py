"""MSDeformAttn: shapes, padding, initial values, errors, precision, and its replacement."""

import math

import pytest
import torch
from builders import batch, build, tiny_config
from rounding import assert_as_near_as_rounding_allows
from torch import nn

import ddetr_plugin.models.layers.attention as attention
from ddetr_plugin.models import FeatureLevels, MSDeformAttn
from ddetr_plugin.ops import ms_deform_attn_fused_reference
from ddetr_plugin.registry import MODELS


def make_levels(sizes, image_shapes=((64, 96), (40, 72))) -> FeatureLevels:
    batch_shape = tuple(max(side) for side in zip(*image_shapes))
    return FeatureLevels.from_images(sizes, batch_shape, image_shapes, torch.device('cpu'))


def randomised(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def by_the_paper(module, query, memory, reference, levels):
    """Eq. 3 in float64, one sample at a time, with bilinear interpolation written out."""
    weights = {name: p.detach().double() for name, p in module.named_parameters()}

    def linear(x, name):
        return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias']

    heads, points, channels = module.num_heads, module.num_points, module.embed_dims
    query, memory, reference = query.double(), memory.double(), reference.double()
    value = linear(memory, 'value_proj')
    if levels.padding_mask is not None:
        value[levels.padding_mask] = 0
    value = value.unflatten(-1, (heads, channels // heads))
    batch, queries = query.shape[:2]
    offsets = linear(query, 'sampling_offsets')
    offsets = offsets.view(batch, queries, heads, len(levels.sizes), points, 2)
    scores = linear(query, 'attention_weights').view(batch, queries, heads, -1)
    scores = scores.softmax(-1).view(batch, queries, heads, len(levels.sizes), points)
    output = torch.zeros(batch, queries, heads, channels // heads, dtype=torch.float64)
    for b, q, m in torch.cartesian_prod(*map(torch.arange, (batch, queries, heads))).tolist():
        start = 0
        for level, (rows, cols) in enumerate(levels.sizes):
            anchor = reference[b if len(reference) > 1 else 0, q, level]
            for k in range(points):
                dx, dy = offsets[b, q, m, level, k].tolist()
                if len(anchor) == 2:
                    x, y = anchor[0] * cols + dx, anchor[1] * rows + dy
                else:
                    x = (anchor[0] + dx / points * anchor[2] / 2) * cols
                    y = (anchor[1] + dy / points * anchor[3] / 2) * rows
                x, y = float(x) - 0.5, float(y) - 0.5
                for row in (math.floor(y), math.floor(y) + 1):
                    for col in (math.floor(x), math.floor(x) + 1):
                        if 0 <= row < rows and 0 <= col < cols:
                            share = (1 - abs(y - row)) * (1 - abs(x - col))
                            share *= scores[b, q, m, level, k]
                            output[b, q, m] += share * value[b, start + row * cols + col, m]
            start += rows * cols
    return linear(output.flatten(-2), 'output_proj')


@pytest.mark.parametrize('coordinates', [2, 4])
@pytest.mark.parametrize(
    ('channels', 'heads', 'sizes', 'points'),
    [(12, 4, [(3, 5)], 1), (21, 3, [(5, 3), (2, 2), (1, 1)], 2), (5, 1, [(4, 6), (2, 3)], 5)],
)
def test_any_width_levels_and_points_follow_the_papers_equation(
    channels, heads, sizes, points, coordinates
):
    levels = make_levels(sizes)
    module = randomised(MSDeformAttn(channels, heads, len(sizes), points))
    memory = torch.randn(2, sum(levels.tokens_per_level), channels)
    query = torch.randn(2, 3, channels)
    reference = torch.rand(2, 3, len(sizes), coordinates)
    output = module(query, memory, reference, levels)
    expected = by_the_paper(module, query, memory, reference, levels)
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-4)


def test_one_reference_serves_every_picture_of_the_batch():
    levels = make_levels([(4, 6)])
    module = randomised(MSDeformAttn(8, 2, 1, 2))
    query, memory, reference = torch.randn(2, 3, 8), torch.randn(2, 24, 8), torch.rand(1, 3, 1, 2)
    repeated = module(query, memory, reference.expand(2, -1, -1, -1), levels)
    assert torch.equal(module(query, memory, reference, levels), repeated)


def test_padded_tokens_contribute_nothing():
    levels = make_levels([(8, 12), (4, 6)])
    module = randomised(MSDeformAttn(8, 2, 2, 3))
    query, memory, reference = torch.randn(2, 5, 8), torch.randn(2, 120, 8), torch.rand(2, 5, 2, 2)
    changed = memory.clone()
    changed[levels.padding_mask] = 1e4
    assert 0 < levels.padding_mask.sum() < levels.padding_mask.numel()
    before = module(query, memory, reference, levels)
    assert torch.equal(module(query, changed, reference, levels), before)
    changed[~levels.padding_mask] += 1
    assert not torch.allclose(module(query, changed, reference, levels), before)


def test_initial_points_lie_on_rays_and_attention_is_uniform():
    module = randomised(MSDeformAttn(16, 4, 2, 3))
    module.init_weights()
    # Heads look along +x, +y, -x, -y; the k-th point is k cells away, on every level.
    rays = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    offsets = [[[(x * k, y * k) for k in (1, 2, 3)]] * 2 for x, y in rays]
    bias = module.sampling_offsets.bias.view(4, 2, 3, 2)
    torch.testing.assert_close(bias, torch.tensor(offsets).float(), rtol=0, atol=1e-6)
    diagonal = MSDeformAttn(16, 8, 1, 2).sampling_offsets.bias.view(8, 2, 2)[1]
    torch.testing.assert_close(diagonal, torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    for linear in (module.attention_weights, module.sampling_offsets):
        assert not linear.weight.any()
    assert not module.attention_weights.bias.any()
    for linear in (module.value_proj, module.output_proj):
        bound = math.sqrt(6 / (16 + 16))  # Xavier uniform
        assert 0.8 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(embed_dims=10, num_heads=4), 'embed_dims must be a multiple of num_heads'),
        (dict(embed_dims=0, num_heads=1), 'embed_dims, .* must be positive'),
        (dict(num_heads=0), 'num_heads.* must be positive'),
        (dict(num_levels=0), 'num_levels.* must be positive'),
        (dict(num_points=-1), 'num_points must be positive'),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MSDeformAttn(**arguments)


GOOD = dict(
    query=(2, 5, 8), memory=(2, 120, 8), reference_points=(2, 5, 2, 2), sizes=[(8, 12), (4, 6)]
)


@pytest.mark.parametrize(
    ('argument', 'bad'),
    [
        ('query', (2, 5, 9)),
        ('query', (2, 5)),
        ('memory', (2, 119, 8)),
        ('memory', (1, 120, 8)),
        ('memory', (2, 120, 7)),
        ('reference_points', (2, 5, 2, 3)),
        ('reference_points', (2, 4, 2, 2)),
        ('reference_points', (3, 5, 2, 2)),
        ('reference_points', (2, 5, 1, 2)),
        ('reference_points', (2, 5, 2)),
        ('levels', [(8, 12)]),
    ],
)
def test_every_wrong_argument_is_refused_with_its_name(argument, bad):
    shapes = GOOD | {'sizes' if argument == 'levels' else argument: bad}
    module = MSDeformAttn(8, 2, 2, 3)
    with pytest.raises(ValueError, match=f'^{argument} must'):
        module(
            torch.zeros(shapes['query']),
            torch.zeros(shapes['memory']),
            torch.zeros(shapes['reference_points']),
            make_levels(shapes['sizes']),
        )


def test_padding_of_another_batch_is_refused_with_its_name():
    module = MSDeformAttn(8, 2, 2, 3)
    levels = make_levels(GOOD['sizes'], ((64, 96), (40, 72), (64, 96)))
    with pytest.raises(ValueError, match='^levels must describe the B=2 pictures'):
        module(*(torch.zeros(GOOD[name]) for name in list(GOOD)[:3]), levels)


def test_offsets_stay_in_float32_under_bfloat16_autocast(monkeypatch):
    seen = {}

    def spy(value, spatial_shapes, level_start_index, reference, offsets, logits):
        seen[torch.is_autocast_enabled('cpu')] = (value.dtype, offsets, logits)
        return ms_deform_attn_fused_reference(
            value, spatial_shapes, level_start_index, reference, offsets, logits
        )

    monkeypatch.setattr(attention, 'ms_deform_attn_fused', spy)
    levels = make_levels([(100, 160)], ((800, 1280),) * 2)
    module = randomised(MSDeformAttn(16, 2, 1, 4))
    query, memory = torch.randn(2, 5, 16), torch.randn(2, 16000, 16)
    reference = torch.rand(2, 5, 1, 2)
    exact = module(query, memory, reference, levels)
    with torch.autocast('cpu', torch.bfloat16):
        # A query of 16 bits, as a layer before it would hand it over.
        output = module(query, memory, reference, levels)
    (_, offsets, logits), (value_dtype, low, low_logits) = seen.values()
    assert low.dtype == low_logits.dtype == torch.float32
    assert value_dtype == output.dtype == torch.bfloat16
    # In cells of a map 160 wide; bfloat16 locations would be off by up to a third of a cell.
    assert (low - offsets).abs().max() < 1e-4
    assert (low_logits - logits).abs().max() < 1e-5
    assert_as_near_as_rounding_allows(
        dict(output=output.detach()),
        dict(output=exact.detach()),
        lambda: dict(output=module(query, memory, reference, levels)),
        module,
        torch.bfloat16,
    )


def test_a_users_attention_and_ffn_replace_ours_by_config():
    @MODELS.register_module(name='TestMeanAttention')
    class MeanAttention(nn.Module):
        def __init__(self, gain):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(gain))

        def forward(self, query, memory, reference_points, levels):
            assert reference_points.shape[:3] == (*query.shape[:2], len(levels.sizes))
            return query * self.gain + memory.mean(1, keepdim=True)

    @MODELS.register_module(name='TestLinearFFN')
    class LinearFFN(nn.Linear):
        pass

    try:
        config = tiny_config()
        mean = dict(type='ddetr_plugin.TestMeanAttention', gain=0.5)
        linear = dict(type='ddetr_plugin.TestLinearFFN', in_features=32, out_features=32)
        config.encoder.layer.self_attn = config.decoder.layer.cross_attn = mean
        config.encoder.layer.ffn = config.decoder.layer.ffn = linear
        model = build(config)
        inputs, samples = batch()
        sum(model.loss(inputs, samples).values()).backward()
    finally:
        for name in ('TestMeanAttention', 'TestLinearFFN'):
            MODELS.module_dict.pop(name)
    layers = (*model.encoder.layers, *model.decoder.layers)
    assert all(isinstance(layer.ffn, LinearFFN) for layer in layers)
    assert all(layer.ffn.weight.grad.any() for layer in layers)
    assert model.encoder.layers[0].self_attn.gain.grad != 0
    assert model.decoder.layers[1].cross_attn.gain.grad != 0
    assert not any(isinstance(module, MSDeformAttn) for module in model.modules())
