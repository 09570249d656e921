"""HungarianAssigner: least cost, odd numbers, mmdet's interface, costs that are no numbers."""

import itertools

import numpy as np
import pytest
import torch
from builders import (
    batch,
    build,
    criterion_config,
    mmdet_twin,
    tiny_config,
)
from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmengine.structures import InstanceData

from ddetr_plugin.checkpoints.parity.other_models import mmdet_assigner_config
from ddetr_plugin.models import HungarianAssigner
from ddetr_plugin.registry import TASK_UTILS


@pytest.fixture
def assigner():
    return TASK_UTILS.build(criterion_config()['assigner'])


def random_boxes(*shape):
    return torch.rand(*shape, 4) * 0.4 + 0.2


def instances(num_preds, num_gts, height=60, width=80, num_classes=5):
    """Predictions and ground truths of one picture, in pixels as mmdet's heads have them."""
    size = torch.tensor([width, height, width, height])
    predictions = InstanceData(
        scores=torch.randn(num_preds, num_classes),
        bboxes=bbox_cxcywh_to_xyxy(random_boxes(num_preds)) * size,
    )
    truths = InstanceData(
        labels=torch.randint(num_classes, (num_gts,)),
        bboxes=bbox_cxcywh_to_xyxy(random_boxes(num_gts)) * size,
    )
    return predictions, truths, dict(img_shape=(height, width))


@pytest.mark.parametrize(('queries', 'gts'), [(6, 3), (4, 4), (3, 6), (5, 1)])
def test_assignment_has_the_least_total_cost_of_all_permutations(assigner, queries, gts):
    cost = np.random.randn(queries, gts)
    query, gt = assigner.match(cost)
    assert len(set(query)) == len(set(gt)) == len(query) == min(queries, gts)
    assert (np.diff(query) > 0).all()
    small, large = sorted((queries, gts))
    table = cost if queries >= gts else cost.T
    least = min(
        table[list(rows), range(small)].sum()
        for rows in itertools.permutations(range(large), small)
    )
    assert cost[query, gt].sum() == pytest.approx(least)


@pytest.mark.parametrize('shape', [(4, 0), (0, 4), (0, 0)])
def test_nothing_to_match_gives_no_pairs(assigner, shape):
    query, gt = assigner.match(np.zeros(shape))
    assert len(query) == len(gt) == 0


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_costs_that_are_not_finite_are_refused(assigner, bad):
    cost = np.zeros((4, 3))
    cost[1, 2] = bad
    with pytest.raises(ValueError, match='finite costs, got 1 of 12 that are NaN or infinite'):
        assigner.match(cost)


def test_a_batch_is_matched_as_its_pictures_are_alone(assigner):
    costs = [torch.randn(3, 2, 6, 4), torch.randn(1, 2, 20, 4)]
    num_gts = [1, 4]
    matches = assigner.match_batch(costs, [num_gts] * 2)
    assert [len(layers) for layers in matches] == [3, 1]
    for cost, layers in zip(costs, matches):
        for n, b in itertools.product(range(len(cost)), range(2)):
            alone = assigner.match(cost[n, b, :, : num_gts[b]].numpy())
            for ours, wanted in zip(layers[n][b], alone):
                assert ours.tolist() == wanted.tolist()


@pytest.mark.parametrize('column', [1, 3])  # of the ground truths, and beyond them
def test_a_bad_cost_in_a_batch_is_named_by_set_layer_and_picture(assigner, column):
    costs = [torch.zeros(3, 2, 6, 4), torch.zeros(1, 2, 20, 4)]
    costs[1][0, 1, 7, column] = torch.nan
    with pytest.raises(ValueError, match=r'\(prediction set 1, layer 0, picture 1\)'):
        assigner.match_batch(costs, [[4, 2]] * 2)


def test_batched_costs_equal_those_of_mmdet(assigner):
    predictions, truths, meta = instances(7, 4)
    size = torch.tensor([80, 60, 80, 60])
    wanted = sum(
        MMDET_TASK_UTILS.build(cost)(predictions, truths, img_meta=meta)
        for cost in mmdet_assigner_config()['match_costs']
    )
    layers = (3, 2, 1, 1)
    cost = assigner.cost(
        predictions.scores.repeat(layers),
        bbox_xyxy_to_cxcywh(predictions.bboxes / size).repeat(layers),
        truths.labels.repeat(2, 1),
        bbox_xyxy_to_cxcywh(truths.bboxes / size).repeat(2, 1, 1),
    )
    assert cost.shape == (3, 2, 7, 4)
    torch.testing.assert_close(cost, wanted.expand_as(cost), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('label', [-1, 5])
def test_an_unknown_label_costs_nan_for_its_ground_truth_alone(assigner, label):
    cost = assigner.cost(
        torch.randn(6, 5), random_boxes(6), torch.tensor([1, label, 4]), random_boxes(3)
    )
    assert cost.isnan().all(0).tolist() == [False, True, False]
    assert cost[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_costs_are_float32_or_better_also_under_autocast(assigner, dtype):
    logits, boxes = torch.randn(6, 5).to(dtype), random_boxes(6).to(dtype)
    labels, gt_boxes = torch.tensor([1, 4]), random_boxes(2)
    cost = assigner.cost(logits, boxes, labels, gt_boxes)
    assert cost.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(assigner.cost(logits, boxes, labels, gt_boxes), cost)


@pytest.mark.parametrize(('num_preds', 'num_gts'), [(8, 3), (3, 8), (5, 0), (0, 4)])
def test_the_interface_of_mmdet_gives_the_result_of_mmdets_assigner(assigner, num_preds, num_gts):
    predictions, truths, meta = instances(num_preds, num_gts)
    ours = assigner.assign(pred_instances=predictions, gt_instances=truths, img_meta=meta)
    theirs = MMDET_TASK_UTILS.build(mmdet_assigner_config()).assign(predictions, truths, meta)
    assert ours.num_gts == theirs.num_gts == num_gts
    assert torch.equal(ours.gt_inds, theirs.gt_inds)
    assert torch.equal(ours.labels, theirs.labels)


def test_our_assigner_drops_into_the_head_of_mmdet():
    config = tiny_config('refine')
    ours = build(config)
    twin = mmdet_twin(config, ours, assigner=criterion_config()['assigner'])
    assert isinstance(twin.bbox_head.assigner, HungarianAssigner)
    # As a Runner does before it trains: ours has been told so by its constructor.
    twin.train()
    inputs, samples = batch(gts=(3, 0))
    wanted = {name: loss.item() for name, loss in ours.loss(inputs, samples).items()}
    losses = {name: loss.item() for name, loss in twin.loss(inputs, samples).items()}
    assert losses == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ('name', 'ours'),
    [('FocalLossCost', 'FocalCost'), ('BBoxL1Cost', 'L1Cost'), ('IoUCost', 'GIoUCost')],
)
def test_costs_of_mmdet_are_refused_with_the_name_of_ours(name, ours):
    with pytest.raises(ValueError, match=f"mmdet's {name}.*use ddetr_plugin.{ours} instead"):
        HungarianAssigner([dict(type=f'mmdet.{name}')])


def test_one_cost_needs_no_list():
    assigner = HungarianAssigner(dict(type='ddetr_plugin.L1Cost', weight=2.0))
    assert [cost.weight for cost in assigner.match_costs] == [2.0]


@pytest.mark.parametrize(
    ('owner', 'field', 'number'),
    [
        (0, 'scores', torch.nan),
        (0, 'bboxes', torch.inf),
        (1, 'bboxes', torch.nan),
        (1, 'labels', 99),
        (1, 'labels', -1),
    ],
)
def test_the_interface_of_mmdet_names_the_first_bad_tensor(assigner, owner, field, number):
    predictions = InstanceData(scores=torch.randn(5, 4), bboxes=torch.rand(5, 4) * 50)
    truths = InstanceData(labels=torch.tensor([1, 2]), bboxes=torch.rand(2, 4) * 50)
    (predictions, truths)[owner][field].view(-1)[-1] = number
    name = ('pred_instances', 'gt_instances')[owner]
    with pytest.raises(ValueError, match=f'first bad tensor: {name}.{field}'):
        assigner.assign(predictions, truths, dict(img_shape=(60, 60)))


@pytest.mark.parametrize('meta', [None, {}, dict(ori_shape=(3, 3))])
def test_the_interface_of_mmdet_asks_for_the_shape_of_the_picture(assigner, meta):
    predictions = InstanceData(scores=torch.randn(5, 4), bboxes=torch.rand(5, 4))
    truths = InstanceData(labels=torch.tensor([1]), bboxes=torch.rand(1, 4))
    with pytest.raises(ValueError, match='img_shape'):
        assigner.assign(predictions, truths, meta)


def test_an_assigner_without_costs_is_refused():
    with pytest.raises(ValueError, match='match_costs must name at least one cost'):
        HungarianAssigner(match_costs=[])
