"""The places where other papers' parts are put in: each used as an outsider would, in few lines."""

import numpy as np
import pytest
import torch
from builders import batch, build, tiny_config
from mmengine.model import BaseModule
from torch import nn

from ddetr_plugin.models.heads.query_head import InitialQueries, KnownQueries, LearnedQueryHead
from ddetr_plugin.models.heads.task_head import TaskHead
from ddetr_plugin.models.layers.attention import MultiheadSelfAttention
from ddetr_plugin.models.layers.decoder import DeformableTransformerDecoder
from ddetr_plugin.models.losses.criterion import SetCriterion
from ddetr_plugin.models.losses.prediction_sets import PredictionSet
from ddetr_plugin.models.losses.targets import Targets
from ddetr_plugin.ops import ms_deform_attn, sampling_locations, use_reference
from ddetr_plugin.registry import MODELS


@pytest.fixture
def register():
    """Registers a class for one test; returns the name for its config."""
    names = []

    def add(cls):
        MODELS.register_module(name=cls.__name__)(cls)
        names.append(cls.__name__)
        return f'ddetr_plugin.{cls.__name__}'

    yield add
    for name in names:
        del MODELS._module_dict[name]


class DenoisingHead(LearnedQueryHead):
    """One query per ground truth, at its box, before the learned ones."""

    def forward(self, memory, levels, targets=None):
        queries = super().forward(memory, levels)
        if targets is None:
            return queries
        first, count = targets.boxes.shape[:2]
        reference = torch.cat((targets.boxes[..., :2], queries.reference), dim=1)
        content = self.query_embedding.weight[0].chunk(2)[1].expand(first, count, -1)
        total = count + queries.query.shape[1]
        mask = torch.zeros(total, total, dtype=torch.bool)
        mask[count:, :count] = True  # Learned queries must not see what is made of the truth.
        known = [(np.arange(n), np.arange(n)) for n in targets.counts]
        return InitialQueries(
            torch.cat((content, queries.query), dim=1),
            torch.cat((torch.zeros_like(content), queries.query_pos), dim=1),
            reference,
            self_attn_mask=mask,
            known=KnownQueries('dn_', count, known),
        )


@pytest.mark.parametrize('dropout', [0.0, 0.1])
def test_queries_of_known_ground_truths_are_scored_unmatched_and_hidden_from_the_others(
    register, dropout
):
    head = dict(type=register(DenoisingHead))
    model = build(tiny_config(query_head=head, dropout=dropout)).eval()
    plain = build(tiny_config(dropout=dropout)).eval()
    plain.load_state_dict(model.state_dict())
    inputs, samples = batch()
    losses, wanted = model.loss(inputs, samples), plain.loss(inputs, samples)
    assert losses.keys() - wanted.keys() == {
        f'{prefix}dn_loss_{kind}' for prefix in ('', 'd0.') for kind in ('cls', 'bbox', 'iou')
    }
    for name, loss in wanted.items():
        torch.testing.assert_close(losses[name], loss)
    # By definition: every ground truth is matched with the query that was made of it.
    targets = Targets.from_samples(samples)
    known = model.forward_batch(inputs, samples, targets).without_known()[1]
    distance = [
        (known.boxes[-1, b, :n] - targets.boxes[b, :n]).abs().sum()
        for b, n in enumerate(targets.counts)
    ]
    torch.testing.assert_close(losses['dn_loss_bbox'], sum(distance) / sum(targets.counts) * 5)
    model.train().loss(inputs, samples)['dn_loss_cls'].backward()
    assert model.query_head.query_embedding.weight.grad[0].abs().sum() > 0
    assert len(model.eval().predict(inputs, samples)[0].pred_instances) == 50


@pytest.mark.parametrize('dropout', [0.0, 0.3])
def test_a_masked_query_has_no_part_in_the_attention_of_others(dropout):
    attention = MultiheadSelfAttention(16, 4, dropout)
    query, value = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[2:, :2] = True
    for train in (False, True):
        attention.train(train)
        torch.manual_seed(0)
        before = attention(query, value, mask)
        changed = value.index_fill(1, torch.arange(2), 7.0)
        torch.manual_seed(0)
        after = attention(query.index_fill(1, torch.arange(2), 7.0), changed, mask)
        torch.testing.assert_close(before[:, 2:], after[:, 2:])
        assert not torch.equal(before[:, :2], after[:, :2])
    # torch's own module, on the same weights.
    theirs = attention.attn.eval()(query, query, value, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(attention.eval()(query, value, mask), theirs)


class OneToManyCriterion(SetCriterion):
    """Every ground truth may have two queries of the last layer (H-DETR, arXiv:2207.13080)."""

    def prediction_sets(self, logits, boxes, targets, *others):
        sets = super().prediction_sets(logits, boxes, targets, *others)
        pairs = zip(targets.labels, targets.boxes, targets.counts)
        twice = [(labels[:n].repeat(2), wanted[:n].repeat(2, 1)) for labels, wanted, n in pairs]
        many = PredictionSet(('many_',), logits[-1:], boxes[-1:], Targets.pad(*zip(*twice)))
        return [*sets, many]


def test_a_criterion_adds_sets_of_predictions_with_targets_of_their_own(register):
    model = build(tiny_config(criterion=dict(type=register(OneToManyCriterion))))
    inputs, samples = batch()
    losses = model.loss(inputs, samples)
    targets = Targets.from_samples(samples)
    outputs = model.forward_batch(inputs, samples)
    logits, boxes = outputs.logits[-1], outputs.boxes[-1]
    total = 0
    for b, n in enumerate(targets.counts):
        labels, wanted = targets.labels[b, :n].repeat(2), targets.boxes[b, :n].repeat(2, 1)
        cost = model.criterion.assigner.cost(logits[b], boxes[b], labels, wanted)
        query, gt = model.criterion.assigner.match(cost.detach().numpy())
        assert len(query) == 2 * n
        total += (boxes[b, query] - wanted[gt]).abs().sum()
    torch.testing.assert_close(losses['many_loss_bbox'], total / sum(targets.counts) * 5)


class LookForwardTwiceDecoder(DeformableTransformerDecoder):
    def next_reference(self, layer, hidden, reference, box, regress):
        return regress(layer, hidden, reference.detach())


def test_boxes_may_send_gradients_one_layer_back_through_their_reference(register):
    kind = register(LookForwardTwiceDecoder)
    inputs, samples = batch()
    grads = []
    for decoder in (dict(type=kind), {}):
        model = build(tiny_config('refine', decoder=decoder))
        boxes = model.forward_batch(inputs, samples).boxes
        branch = model.bbox_head.reg_branches[0][-1].bias
        (grad,) = torch.autograd.grad(boxes[1].sum(), [branch])
        grads.append((boxes.detach(), grad))
    (twice, through), (once, cut) = grads
    # Layer 1 attends around the same place either way.
    assert torch.equal(twice, once)
    assert cut.abs().sum() == 0 and through.abs().sum() > 0


class CountHead(BaseModule):
    """How many corners each query's object has."""

    extra_maps = 0

    def __init__(self, embed_dims):
        super().__init__()
        self.linear = nn.Linear(embed_dims, 1)

    def loss(self, inputs, matches, gt_instances):
        wanted = [gt_instances[b].corners[g] for b, g in zip(matches.picture, matches.gt)]
        found = self.linear(inputs.hidden[matches.picture, matches.query])[:, 0]
        return dict(loss_corners=(found - torch.stack(wanted)).abs().sum() / matches.count)

    def predict(self, inputs, samples, rescale=True):
        for hidden, sample in zip(inputs.hidden, samples):
            found = sample.pred_instances
            found.corners = self.linear(hidden[found.queries])[:, 0]


def test_a_head_for_another_task_is_named_in_the_config_trained_and_frozen_around(register):
    head = dict(type=register(CountHead), embed_dims=32)
    model = build(tiny_config(task_heads=dict(corner_head=head), freeze_detector=True)).train()
    assert isinstance(model.corner_head, TaskHead)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        'corner_head.linear.weight',
        'corner_head.linear.bias',
    }
    inputs, samples = batch()
    for sample in samples:
        sample.gt_instances.corners = torch.arange(len(sample.gt_instances)).float()
    assert model.loss(inputs, samples)['loss_corners'] > 0
    found = model.eval().predict(inputs, samples)[0].pred_instances
    assert found.corners.shape == found.scores.shape
    # Weights of a model without it load, and its own stay.
    before = model.corner_head.linear.weight.clone()
    model.load_state_dict(build(tiny_config(), seed=1).state_dict(), strict=False)
    assert torch.equal(model.corner_head.linear.weight, before)
    with pytest.raises(ValueError, match="a head 'neck', but that is what another part"):
        build(tiny_config(task_heads=dict(neck=head)))


class Tensors(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.predict_tensors(images)


def test_predictions_are_a_function_of_tensors_that_torch_exports_with_its_own_operators():
    model = build(tiny_config('two-stage')).eval()
    inputs, samples = batch(image_shapes=[(64, 96)], gts=[3])
    with torch.no_grad(), use_reference():
        program = torch.export.export(Tensors(model), (inputs,))
    assert not [n for n in program.graph.nodes if 'ddetr_plugin' in str(n.target)]
    scores, labels, boxes = program.module()(inputs)
    wanted = model.predict(inputs, samples, rescale=False)[0].pred_instances
    torch.testing.assert_close(scores[0], wanted.scores)
    torch.testing.assert_close(boxes[0], wanted.bboxes, rtol=1e-4, atol=1e-3)
    assert torch.equal(labels[0], wanted.labels)


def test_points_and_weights_of_an_attention_are_those_of_its_operator():
    model = build(tiny_config('refine')).eval()
    seen = []
    attention = model.decoder.layers[1].cross_attn
    attention.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    inputs, samples = batch()
    model.forward_batch(inputs, samples)
    (query, memory, reference, levels), output = seen[0]
    offsets, logits = attention.points_and_logits(query)
    locations = sampling_locations(reference, offsets, levels.sizes)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    value = attention.value_proj(memory).masked_fill(levels.padding_mask[..., None], 0.0)
    value = value.unflatten(-1, (attention.num_heads, -1))
    sampled = ms_deform_attn(value, levels.sizes, None, locations, weights)
    torch.testing.assert_close(attention.output_proj(sampled), output)
    with pytest.raises(ValueError, match='spatial_shapes L pairs'):
        sampling_locations(reference, offsets, levels.sizes[:2])


class PositionOfReference(BaseModule):
    def __init__(self, embed_dims):
        super().__init__()
        self.linear = nn.Linear(2, embed_dims)

    def forward(self, reference):
        return self.linear(reference[..., :2])


class ContentOnlyHead(LearnedQueryHead):
    def forward(self, memory, levels, targets=None):
        return super().forward(memory, levels)._replace(query_pos=None)


def test_a_model_without_encoder_has_positions_that_are_functions_of_references(register, tmp_path):
    config = tiny_config(
        'refine',
        encoder=None,
        positional_encoding=None,
        query_head=dict(type=register(ContentOnlyHead)),
        decoder=dict(query_pos=dict(type=register(PositionOfReference), embed_dims=32)),
    )
    model = build(config)
    inputs, samples = batch()
    sum(model.loss(inputs, samples).values()).backward()
    assert model.decoder.query_pos.linear.weight.grad.abs().sum() > 0
    # Also behind a program's prefix, where its names must be recognised as ours.
    state = {f'module.{name}': tensor for name, tensor in model.state_dict().items()}
    other = build(config, seed=1)
    other.load_state_dict(state)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[f'module.{name}']), name
    with pytest.raises(ValueError, match='give decoder.query_pos'):
        build(tiny_config(query_head=dict(type='ddetr_plugin.ContentOnlyHead'))).loss(
            inputs, samples
        )
    with pytest.raises(ValueError, match='an encoder needs a positional encoding'):
        build(tiny_config(positional_encoding=None))
