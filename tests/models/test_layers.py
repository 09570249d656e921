"""Encoder and decoder layers: what is added to what, where dropout acts, what they are given."""

import pytest
import torch
from builders import tiny_config
from mmcv.cnn.bricks.transformer import FFN

from ddetr_plugin.models import FeatureLevels, FeedForward, MultiheadSelfAttention
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
    ffn, x = FeedForward(16, 512, ffn_drop=0.25), torch.randn(4096, 16)
    with torch.no_grad():
        ffn.layers[1].weight.fill_(1.0)
        ffn.layers[1].bias.zero_()
    hidden = ffn.layers[0](x).relu()
    dropped = ffn(x)
    # After: a quarter of the outputs is zero, which they are nowhere else.
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    # Inside: the sum of what is kept varies as a sum of independent terms does.
    kept = dropped[:, 0][dropped[:, 0] != 0] * 0.75
    wanted = hidden.sum(1)[dropped[:, 0] != 0]
    spread = (hidden.square().sum(1) * 0.25 / 0.75).sqrt()[dropped[:, 0] != 0]
    standardised = (kept - wanted) / spread
    assert standardised.mean().abs() < 0.1
    assert standardised.std().item() == pytest.approx(1, abs=0.1)
    ffn.eval()
    assert torch.equal(ffn(x), ffn.layers[1](ffn.layers[0](x).relu()))


@pytest.mark.parametrize(
    'sizes', [dict(embed_dims=0), dict(feedforward_channels=0), dict(ffn_drop=1.5)]
)
def test_a_feed_forward_network_refuses_absurd_sizes(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        FeedForward(**sizes)


def test_a_feed_forward_network_takes_the_weights_of_mmcv_and_gives_its_result():
    theirs = FFN(embed_dims=32, feedforward_channels=48, ffn_drop=0.1, add_identity=False).eval()
    ours = FeedForward(embed_dims=32, feedforward_channels=48, ffn_drop=0.1).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_self_attention_drops_weights_in_training_alone():
    attention, query = MultiheadSelfAttention(8, 2, dropout=0.5), torch.randn(2, 5, 8)
    assert not torch.allclose(attention(query, query), attention(query, query))
    attention.eval()
    assert torch.equal(attention(query, query), attention(query, query))
    assert attention(query, torch.zeros(2, 5, 8)).abs().max() < 1e-6  # initial biases are zero


def test_self_attention_is_that_of_torch():
    attention, query, value = MultiheadSelfAttention(32, 4), *torch.randn(2, 3, 7, 32)
    expected, _ = attention.attn(query, query, value, need_weights=False)
    torch.testing.assert_close(attention(query, value), expected)
    # With dropout another path computes it; without a dropped weight it gives the same.
    attention.dropout = 1e-9
    torch.testing.assert_close(attention(query, value), expected)


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


@pytest.mark.parametrize('make', [encoder_layer, decoder_layer])
def test_activation_checkpointing_changes_no_bit_and_keeps_fewer_tensors(make, levels):
    plain, recomputing = make(dropout=0.3), make(dropout=0.3, with_cp=True)
    recomputing.load_state_dict(plain.state_dict())
    inputs = (encoder_inputs if make is encoder_layer else decoder_inputs)(levels)
    results, kept = [], []
    for layer in (plain, recomputing):
        sizes = []
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.append(tensor.numel()) or tensor, lambda x: x
        ):
            output = layer(*inputs)
        output.square().sum().backward()
        results.append([output, *(p.grad for p in layer.parameters())])
        kept.append(sum(sizes))
    for mine, other in zip(*results):
        assert torch.equal(mine, other)
    assert kept[1] < kept[0] / 3
