"""What autocast does on a CPU is not what it does on a GPU, and results must not depend on it.

The products are those of float32 sums that are rounded, so that no instructions of a CPU matter.
"""

import pytest
import torch
from builders import tiny_config
from torch import nn

from benchmarks.long_runs.rounded_products import RoundedProducts
from ddetr_plugin.models import ContentTwoStageHead, LearnedQueryHead, TwoStageHead
from ddetr_plugin.models.detr.focal_detr_head import FocalDETRHead
from ddetr_plugin.models.detr.mask_detr import MaskDETRHead
from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.layers.attention import MultiheadSelfAttention
from ddetr_plugin.registry import MODELS

SIZES = [(8, 10), (4, 5), (2, 3), (1, 2)]
TOKENS = sum(h * w for h, w in SIZES)


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def narrow(request):
    return request.param


@pytest.fixture
def low(narrow):
    """Calls something under autocast."""

    def call(function, *arguments):
        with RoundedProducts(), torch.autocast('cpu', narrow), torch.no_grad():
            return function(*arguments)

    return call


@pytest.fixture
def levels():
    return FeatureLevels.from_images(SIZES, (64, 80), [(64, 80)], torch.device('cpu'))


def noisy(module, std=0.2):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return module


def error(found, exact):
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


def test_a_cpu_leaves_in_16_bits_what_a_gpu_computes_in_float32(narrow):
    """The premise of all that follows; where it changes, torch has another list."""
    tokens, maps = torch.randn(2, 8).to(narrow), torch.randn(2, 4, 3, 3).to(narrow)
    with torch.autocast('cpu', narrow):
        results = (
            tokens.softmax(-1),
            tokens.sum(),
            tokens.cumsum(1),
            nn.LayerNorm(8)(tokens),
            nn.GroupNorm(2, 4)(maps),
        )
    assert [result.dtype for result in results] == [narrow] * 5


def test_the_residual_stream_of_the_encoder_is_float32(low, levels, narrow):
    config = tiny_config().encoder
    config.num_layers = 6
    encoder = noisy(MODELS.build(config), 0.1).eval()
    # As a neck with a group norm hands them over.
    tokens, pos = torch.randn(1, TOKENS, 32).to(narrow), torch.randn(1, TOKENS, 32)
    with torch.no_grad():
        exact = encoder(tokens.float(), pos, levels)
    found = low(encoder, tokens, pos, levels)
    assert found.dtype == torch.float32
    for layer in encoder.layers:
        for part in (*layer.norms, layer):
            part.register_forward_hook(lambda _, arguments, result: result.to(narrow))
    assert error(found, exact) < 0.9 * error(low(encoder, tokens, pos, levels), exact)


def test_the_residual_stream_of_the_decoder_is_float32(low, levels, narrow):
    config = tiny_config().decoder
    config.num_layers = 6
    decoder = noisy(MODELS.build(config), 0.1).eval()
    head = noisy(TwoStageHead(9, 32, num_classes=3)).eval()
    memory = torch.randn(1, TOKENS, 32)
    reference = torch.rand(1, 9, 4) * 0.5 + 0.2
    found = low(head, memory, levels)
    assert found.query.dtype == found.query_pos.dtype == torch.float32

    def decode(query, query_pos):
        return decoder(query, query_pos, reference, memory, levels, lambda *x: reference)[0]

    with torch.no_grad():
        exact = decode(found.query, found.query_pos)
    stream = low(decode, found.query, found.query_pos)
    for layer in decoder.layers:
        for part in (*layer.norms, layer):
            part.register_forward_hook(lambda _, arguments, result: result.to(narrow))
    queries = found.query.to(narrow), found.query_pos.to(narrow)
    assert error(stream, exact) < 0.9 * error(low(decode, *queries), exact)


@pytest.mark.parametrize('kind', [TwoStageHead, ContentTwoStageHead])
def test_queries_of_proposals_are_normalised_in_float32(kind, low, levels, narrow):
    head = noisy(kind(TOKENS, 32, num_classes=3)).eval()
    seen = []
    for linear in (head.memory_trans_fc, head.pos_trans_fc):
        linear.register_forward_hook(lambda _, arguments, result: seen.append(result))
    found = low(head, torch.randn(1, TOKENS, 32), levels)
    assert [x.dtype for x in seen] == [narrow] * 2
    wanted = head.pos_trans_norm(seen[1].float())
    if kind is TwoStageHead:
        embedding = torch.cat((found.query_pos, found.query), dim=-1)
    else:
        embedding = found.query_pos
        # All tokens are proposals here, in another order.
        features = head.memory_trans_norm(seen[0].float())
        torch.testing.assert_close(found.query.sort(1).values, features.sort(1).values)
    torch.testing.assert_close(embedding, wanted, rtol=1e-5, atol=1e-6)


def test_learned_references_are_those_of_float32(low, levels):
    head = noisy(LearnedQueryHead(50, 32))
    memory = torch.randn(2, TOKENS, 32)
    exact = head(memory, levels).reference
    torch.testing.assert_close(low(head, memory, levels).reference, exact, rtol=1e-6, atol=1e-6)


def test_attention_with_dropout_has_scores_in_float32(low, narrow):
    """On a CPU it is computed here; without dropout by torch, which keeps them in float32."""
    attention = noisy(MultiheadSelfAttention(32, 4, dropout=1e-9))
    query = torch.randn(2, 40, 32)
    with torch.no_grad():
        exact = attention.eval()(query, query)
    fused = error(low(attention, query, query), exact)
    assert error(low(attention.train(), query, query), exact) < 1.2 * fused


def test_boxes_of_detr_heads_are_float32_where_hidden_states_are_narrow(low, narrow):
    hidden = torch.randn(2, 1, 7, 16).to(narrow)
    loss_cls = dict(type='mmdet.CrossEntropyLoss', bg_cls_weight=0.1, class_weight=1.0)
    head = noisy(MaskDETRHead(num_classes=3, embed_dims=16, loss_cls=loss_cls, train_cfg=None))
    with torch.no_grad():
        exact = head(hidden.float())
    for found, wanted in zip(low(head, hidden), exact):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)

    losses = [dict(type=f'mmdet.{kind}Loss') for kind in ('Focal', 'L1', 'GIoU')]
    focal = noisy(FocalDETRHead(3, 16, *losses))
    before = []
    focal.reg_branch[-1].register_forward_pre_hook(lambda _, arguments: before.append(arguments[0]))
    _, boxes = low(focal, hidden)
    wanted = nn.functional.linear(
        before[0].double(), *(x.double() for x in focal.reg_branch[-1].parameters())
    ).sigmoid()
    torch.testing.assert_close(boxes.double(), wanted, rtol=0, atol=1e-6)
