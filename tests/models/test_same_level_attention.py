"""SameLevelDeformAttn: the ablation without multi-scale attention."""

import pytest
import torch
from builders import batch, build, initialise, tiny_config

from ddetr_plugin.models import FeatureLevels, MSDeformAttn, SameLevelDeformAttn
from ddetr_plugin.registry import MODELS

SIZES = [(8, 12), (4, 6), (2, 3)]


def make(num_points=2):
    """A module with noise on all weights, tokens of two pictures, one padded, and the levels."""
    module = SameLevelDeformAttn(8, 2, len(SIZES), num_points)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    images = ((64, 96), (40, 72))
    levels = FeatureLevels.from_images(SIZES, (64, 96), images, torch.device('cpu'))
    tokens = torch.randn(2, sum(levels.tokens_per_level), 8)
    return module, tokens, levels.token_reference_points(), levels


def test_what_happens_on_a_level_stays_on_it():
    module, tokens, reference, levels = make()
    before = module(tokens, tokens, reference, levels).split(levels.tokens_per_level, 1)
    for i in range(len(SIZES)):
        changed = [t.clone() for t in tokens.split(levels.tokens_per_level, 1)]
        changed[i] += 1
        memory = torch.cat(changed, 1)
        after = module(memory, memory, reference, levels).split(levels.tokens_per_level, 1)
        same = [torch.equal(*pair) for pair in zip(before, after)]
        assert same == [j != i for j in range(len(SIZES))]


def test_it_is_multi_scale_attention_that_has_no_weight_on_other_levels():
    module, tokens, reference, levels = make()
    points, heads, count = 2, 2, len(SIZES)
    result = module(tokens, tokens, reference, levels).split(levels.tokens_per_level, 1)
    own = module.attn
    for level in range(count):
        whole = MSDeformAttn(8, heads, count, points)
        whole.value_proj.load_state_dict(own.value_proj.state_dict())
        whole.output_proj.load_state_dict(own.output_proj.state_dict())
        with torch.no_grad():
            for name in ('sampling_offsets', 'attention_weights'):
                for kind in ('weight', 'bias'):
                    small = getattr(getattr(own, name), kind).unflatten(0, (heads, 1, -1))
                    large = getattr(getattr(whole, name), kind)
                    large.copy_(small.expand(-1, count, *small.shape[2:]).flatten(0, 2))
            bias = whole.attention_weights.bias.view(heads, count, points)
            bias[:, [i for i in range(count) if i != level]] = -1e6
        expected = whole(tokens, tokens, reference, levels).split(levels.tokens_per_level, 1)
        torch.testing.assert_close(result[level], expected[level], rtol=1e-5, atol=1e-5)


def test_it_starts_as_the_paper_says_inside_the_encoder():
    change = dict(layer=dict(self_attn=dict(type='ddetr_plugin.SameLevelDeformAttn')))
    model = MODELS.build(tiny_config(encoder=change))
    initialise(model)
    attention = model.encoder.layers[0].self_attn.attn
    fresh = MSDeformAttn(32, 4, 1, 2)
    assert torch.equal(attention.sampling_offsets.bias, fresh.sampling_offsets.bias)
    # Not drawn with the other matrices of the layer.
    assert not attention.sampling_offsets.weight.any()


def test_a_detector_with_it_learns_all_its_parameters():
    change = dict(layer=dict(self_attn=dict(type='ddetr_plugin.SameLevelDeformAttn')))
    model = build(tiny_config(encoder=change))
    losses = model.loss(*batch())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize('wrong', ['query', 'memory', 'reference_points', 'levels'])
def test_a_wrong_shape_is_refused_with_the_argument_name(wrong):
    module, tokens, reference, levels = make()
    arguments = dict(query=tokens, memory=tokens, reference_points=reference, levels=levels)
    value = arguments[wrong]
    arguments[wrong] = value.split()[0] if wrong == 'levels' else value[:, :5]
    with pytest.raises(ValueError, match=f'^{wrong} must have'):
        module(**arguments)


def test_the_number_of_levels_must_be_positive():
    with pytest.raises(ValueError, match='num_levels must be positive'):
        SameLevelDeformAttn(8, 2, 0, 2)
