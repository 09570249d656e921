"""Encoder and decoder layers: what is added to what, where dropout acts, what they are given."""

import pytest
import torch
from builders import tiny_config
from torch import nn

from ddetr_plugin.models import FeatureLevels, MultiheadSelfAttention
from ddetr_plugin.registry import MODELS

SIZES = [(8, 12), (4, 6), (2, 3), (1, 2)]
TOKENS = 128


@pytest.fixture
def levels():
    return FeatureLevels.from_images(SIZES, (64, 96), [(64, 96), (40, 72)], torch.device('cpu'))


def encoder_layer(**changes):
    return MODELS.build(tiny_config(encoder=dict(layer=changes)).encoder.layer)


def decoder_layer(**changes):
    return MODELS.build(tiny_config(decoder=dict(layer=changes)).decoder.layer)


def encoder_inputs(levels):
    tokens, pos = torch.randn(2, TOKENS, 32), torch.randn(2, TOKENS, 32)
    return tokens, pos, levels.token_reference_points(), levels


def decoder_inputs(levels):
    query, pos = torch.randn(2, 6, 32), torch.randn(2, 6, 32)
    return query, pos, torch.randn(2, TOKENS, 32), torch.rand(2, 6, 4, 2), levels


def test_an_encoder_layer_adds_attention_and_feed_forward_each_with_a_norm(levels):
    layer = encoder_layer()
    tokens, pos, points, _ = inputs = encoder_inputs(levels)
    attention = layer.self_attn(tokens + pos, tokens, points, levels)
    hidden = layer.norms[0](tokens + attention)
    wanted = layer.norms[1](hidden + layer.ffn(hidden))
    torch.testing.assert_close(layer(*inputs), wanted)


def test_a_decoder_layer_attends_to_queries_then_memory_then_feeds_forward(levels):
    layer = decoder_layer()
    query, pos, memory, points, _ = inputs = decoder_inputs(levels)
    # Position belongs to queries and keys; values are content alone.
    attention = layer.self_attn.attn(query + pos, query + pos, query)[0]
    hidden = layer.norms[0](query + attention)
    hidden = layer.norms[1](hidden + layer.cross_attn(hidden + pos, memory, points, levels))
    wanted = layer.norms[2](hidden + layer.ffn(hidden))
    torch.testing.assert_close(layer(*inputs), wanted)


def test_dropout_of_an_encoder_layer_acts_on_its_attention(levels):
    layer = encoder_layer(dropout=1.0)
    tokens, *_ = inputs = encoder_inputs(levels)
    hidden = layer.norms[0](tokens)
    assert torch.equal(layer(*inputs), layer.norms[1](hidden + layer.ffn(hidden)))


def test_dropout_of_a_decoder_layer_acts_on_both_attentions(levels):
    layer = decoder_layer(dropout=1.0)
    query, *_ = inputs = decoder_inputs(levels)
    hidden = layer.norms[1](layer.norms[0](query))
    assert torch.equal(layer(*inputs), layer.norms[2](hidden + layer.ffn(hidden)))


def test_dropout_of_the_feed_forward_network_acts_inside_and_after_it():
    layer = encoder_layer(ffn=dict(ffn_drop=0.25))
    rates = [module.p for module in layer.ffn.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.25, 0.25]


def test_self_attention_drops_weights_in_training_alone():
    attention, query = MultiheadSelfAttention(8, 2, dropout=0.5), torch.randn(2, 5, 8)
    assert not torch.allclose(attention(query, query), attention(query, query))
    attention.eval()
    assert torch.equal(attention(query, query), attention(query, query))
    assert attention(query, torch.zeros(2, 5, 8)).abs().max() < 1e-6  # initial biases are zero


def test_every_layer_of_a_stack_has_its_own_weights():
    config = tiny_config(encoder=dict(num_layers=3))
    for stack, count in ((config.encoder, 3), (config.decoder, 2)):
        layers = MODELS.build(stack).layers
        assert len(layers) == count
        assert len({id(p) for p in layers.parameters()}) == count * len(
            list(layers[0].parameters())
        )


@pytest.mark.parametrize('make', [encoder_layer, decoder_layer])
def test_initialising_twice_keeps_the_initialisation_of_the_paper(make):
    layer = make()
    layer.init_weights()
    layer.init_weights()
    attention = layer.self_attn if make is encoder_layer else layer.cross_attn
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
