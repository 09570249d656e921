"""Where queries come from: learned embeddings, or the encoder's proposals."""

import math

import pytest
import torch
from builders import batch, build, tiny_config
from rounding import assert_as_near_as_rounding_allows

from ddetr_plugin.models import (
    ContentTwoStageHead,
    FeatureLevels,
    LearnedQueryHead,
    TwoStageHead,
)
from ddetr_plugin.registry import MODELS

SIZES = [(8, 12), (4, 6), (2, 3)]
TOKENS = 126


def make_levels(image_shapes=((64, 96), (40, 72)), sizes=SIZES):
    return FeatureLevels.from_images(sizes, (64, 96), image_shapes, torch.device('cpu'))


def make_head(num_queries=7, embed_dims=12, noise=0.3, **arguments):
    head = TwoStageHead(num_queries, embed_dims, num_classes=3, **arguments)
    head.init_weights()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return head


def test_learned_queries_are_position_then_content_and_the_same_for_every_picture():
    head = LearnedQueryHead(num_queries=5, embed_dims=6)
    queries = head(torch.randn(2, TOKENS, 6), make_levels())
    table = head.query_embedding.weight
    for b in range(2):
        assert torch.equal(queries.query_pos[b], table[:, :6])
        assert torch.equal(queries.query[b], table[:, 6:])
        reference = head.reference_points_fc(table[:, :6]).sigmoid()
        assert torch.equal(queries.reference[b], reference)
    assert queries.reference.shape == (2, 5, 2)
    assert queries.proposal_logits is None
    assert queries.proposal_boxes is None


def test_learned_queries_start_normal_and_their_references_xavier_uniform():
    head = LearnedQueryHead(num_queries=200, embed_dims=64)
    head.init_weights()
    assert head.query_embedding.weight.std().item() == pytest.approx(1, abs=0.02)
    assert head.query_embedding.weight.mean().item() == pytest.approx(0, abs=0.02)
    bound = math.sqrt(6 / (64 + 2))
    assert 0.8 * bound < head.reference_points_fc.weight.abs().max() <= bound
    assert not head.reference_points_fc.bias.any()


def test_learned_references_are_float32_under_bfloat16_autocast():
    head = LearnedQueryHead(num_queries=5, embed_dims=6)
    with torch.autocast('cpu', torch.bfloat16):
        assert head(torch.randn(2, TOKENS, 6), make_levels()).reference.dtype == torch.float32


@pytest.mark.parametrize('embed_dims', [8, 36])
def test_proposals_work_with_any_width_that_four_divides(embed_dims):
    queries = make_head(embed_dims=embed_dims)(torch.randn(2, TOKENS, embed_dims), make_levels())
    assert queries.query.shape == queries.query_pos.shape == (2, 7, embed_dims)
    assert queries.reference.shape == (2, 7, 4)
    assert queries.proposal_logits.shape == (2, TOKENS, 3)
    assert queries.proposal_boxes.shape == (2, TOKENS, 4)


def test_a_width_that_four_does_not_divide_is_refused():
    with pytest.raises(ValueError, match='embed_dims must be a multiple of 4 .* got 6'):
        TwoStageHead(num_queries=5, embed_dims=6, num_classes=2)


def test_a_new_head_proposes_the_box_of_every_token_with_a_rare_class():
    head = TwoStageHead(7, 12, num_classes=3, base_size=0.06, prior_prob=0.02)
    head.init_weights()
    queries = head(torch.randn(1, TOKENS, 12), make_levels([(64, 96)]))
    boxes = queries.proposal_boxes[0]
    start = 0
    for level, (rows, cols) in enumerate(SIZES):
        for row in range(rows):
            for col in range(cols):
                side = 0.06 * 2**level
                wanted = [(col + 0.5) / cols, (row + 0.5) / rows, side, side]
                assert boxes[start + row * cols + col].tolist() == pytest.approx(wanted, abs=1e-6)
        start += rows * cols
    assert not head.reg_branch[-1].weight.any()
    assert not head.reg_branch[-1].bias.any()
    probability = head.cls_branch.bias.sigmoid()
    torch.testing.assert_close(probability, torch.full((3,), 0.02))
    for linear in (head.memory_trans_fc, head.pos_trans_fc):
        bound = math.sqrt(6 / sum(linear.weight.shape))
        assert 0.8 * bound < linear.weight.abs().max() <= bound


def test_the_default_proposal_is_a_twentieth_of_the_picture():
    head = TwoStageHead(7, 12, num_classes=3)
    head.init_weights()
    boxes = head(torch.randn(1, TOKENS, 12), make_levels([(64, 96)])).proposal_boxes
    torch.testing.assert_close(boxes[0, 40, 2:], torch.tensor([0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 125, 2:], torch.tensor([0.2, 0.2]))


def test_the_best_proposals_by_the_first_class_become_detached_references():
    head, memory = make_head(), torch.randn(2, TOKENS, 12, requires_grad=True)
    queries = head(memory, make_levels())
    for b in range(2):
        scores = queries.proposal_logits[b, :, 0].tolist()
        best = sorted(range(TOKENS), key=lambda token: -scores[token])[:7]
        assert torch.equal(queries.reference[b], queries.proposal_boxes[b, best])
    assert not queries.reference.requires_grad
    # Nor do the queries lead back to the memory.
    (queries.query.sum() + queries.query_pos.sum()).backward()
    assert memory.grad is None


def test_proposals_in_the_padding_are_never_valid_and_never_read():
    head, levels = make_head(), make_levels()
    memory = torch.randn(2, TOKENS, 12)
    queries = head(memory, levels)
    padding = levels.padding_mask
    assert padding[1].any()
    assert (queries.proposal_boxes[padding] == 1).all()
    logits = queries.proposal_logits[padding]
    assert torch.equal(logits, logits[:1].expand_as(logits))
    changed = memory.clone()
    changed[padding] = 50.0
    for ours, other in zip(queries[:5], head(changed, levels)[:5]):
        assert torch.equal(ours, other)


def test_tokens_whose_box_is_too_near_the_border_or_too_large_are_not_valid():
    sizes = [(1, 128), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)]
    # The centres of the outer columns lie at 1/256 < 0.01; level 5 has boxes of 0.05 * 32 > 0.99.
    levels = make_levels([(64, 96)], sizes)
    boxes = make_head()(torch.randn(1, 133, 12), levels).proposal_boxes[0]
    invalid = (boxes == 1).all(-1).nonzero().flatten().tolist()
    assert invalid == [0, 127, 132]
    assert boxes.isfinite().all()


def test_fewer_tokens_than_queries_make_every_token_a_query():
    levels = make_levels([(64, 96)], [(1, 2), (1, 1)])
    queries = make_head(num_queries=300)(torch.randn(1, 3, 12), levels)
    assert queries.query.shape == (1, 3, 12)
    assert queries.reference.shape == (1, 3, 4)


def test_a_model_with_fewer_tokens_than_queries_trains_and_predicts():
    model = build(tiny_config('two-stage', num_queries=300))
    inputs, samples = batch(image_shapes=((40, 56), (33, 48)), gts=(3, 2))
    losses = model.loss(inputs, samples)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    results = model.eval().predict(inputs, samples)
    # 5 x 7 + 3 x 4 + 2 x 2 + 1 x 1 tokens
    assert len(model(inputs, samples)[0][0, 0]) == 52
    assert [len(sample.pred_instances) for sample in results] == [50, 50]


def test_proposals_are_float32_under_bfloat16_autocast():
    head, memory = make_head(noise=0.1), torch.randn(2, TOKENS, 12)
    memory = memory.bfloat16().float()
    exact = head(memory, make_levels())
    with torch.autocast('cpu', torch.bfloat16):
        queries = head(memory.bfloat16(), make_levels())
    for name in ('reference', 'proposal_logits', 'proposal_boxes'):
        assert getattr(queries, name).dtype == torch.float32
    assert_as_near_as_rounding_allows(
        dict(boxes=queries.proposal_boxes.detach()),
        dict(boxes=exact.proposal_boxes.detach()),
        lambda: dict(boxes=head(memory, make_levels()).proposal_boxes),
        head,
        torch.bfloat16,
    )


def test_content_queries_are_the_features_of_the_best_proposals():
    head = ContentTwoStageHead(7, 12, num_classes=3)
    memory = torch.randn(2, TOKENS, 12, requires_grad=True)
    queries = head(memory, make_levels([(64, 96)] * 2))
    best = queries.proposal_logits[..., 0].argsort(1, descending=True)[:, :7]
    assert torch.equal(
        queries.reference, queries.proposal_boxes.gather(1, best[..., None].expand(-1, -1, 4))
    )
    for b in range(2):
        features = head.memory_trans_norm(head.memory_trans_fc(memory[b, best[b]]))
        torch.testing.assert_close(queries.query[b], features)
    assert queries.query_pos.shape == (2, 7, 12)
    assert head.pos_trans_fc.weight.shape == (12, 24)
    # The decoder teaches the encoder through them.
    queries.query.sum().backward()
    assert memory.grad[0, best[0]].abs().sum() > 0


def test_content_queries_replace_those_of_the_paper_by_one_word_of_config():
    model = build(
        tiny_config('two-stage', query_head=dict(type='ddetr_plugin.ContentTwoStageHead'))
    )
    inputs, samples = batch()
    losses = model.loss(inputs, samples)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.query_head.parameters())


def test_proposals_learn_objects_not_classes():
    model = build(tiny_config('two-stage'))
    inputs, samples = batch()
    for sample in samples:
        sample.gt_instances.labels.fill_(3)
    model.loss(inputs, samples)['enc_loss_cls'].backward()
    # A positive's gradient is negative and outweighs those of the rare-class background.
    assert model.query_head.cls_branch.bias.grad.argmin() == 0


@pytest.mark.parametrize(
    'config',
    [
        dict(type='ddetr_plugin.LearnedQueryHead', num_queries=0, embed_dims=8),
        dict(type='ddetr_plugin.TwoStageHead', num_queries=0, embed_dims=8, num_classes=3),
        dict(type='ddetr_plugin.TwoStageHead', num_queries=5, embed_dims=8, num_classes=0),
    ],
)
def test_numbers_that_are_not_positive_are_refused(config):
    with pytest.raises(ValueError, match='must be positive'):
        MODELS.build(config)
