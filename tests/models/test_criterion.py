"""SetCriterion: values, missing ground truth, bad numbers, transfers, precision."""

import pytest
import torch
from builders import VARIANTS, batch, build, criterion_config, tiny_config
from mmdet.models.losses import FocalLoss, GIoULoss, L1Loss, VarifocalLoss
from mmdet.registry import TASK_UTILS as MMDET_TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from rounding import assert_as_near_as_rounding_allows
from transfers import count_transfers

from ddetr_plugin.checkpoints.parity.other_models import mmdet_assigner_config
from ddetr_plugin.models import Targets
from ddetr_plugin.registry import MODELS

NUM_CLASSES = 4
COUNTS = (2, 0, 5)


@pytest.fixture
def criterion():
    return MODELS.build(criterion_config())


def random_boxes(*shape):
    return torch.rand(*shape, 4) * 0.4 + 0.2


def make_targets(counts=COUNTS):
    labels = [torch.randint(NUM_CLASSES, (n,)) for n in counts]
    return Targets.pad(labels, [random_boxes(n) for n in counts])


def make_predictions(layers=3, pictures=3, queries=8):
    logits = torch.randn(layers, pictures, queries, NUM_CLASSES)
    return logits.requires_grad_(), random_boxes(layers, pictures, queries).requires_grad_()


def losses_in_a_loop(logits, boxes, targets):
    """One layer's losses, picture by picture, with mmdet's losses and mmdet's assigner."""
    assigner = MMDET_TASK_UTILS.build(mmdet_assigner_config())
    focal = FocalLoss(use_sigmoid=True, loss_weight=2.0, reduction='sum')
    l1, giou = L1Loss(loss_weight=5.0, reduction='sum'), GIoULoss(eps=1e-12, reduction='sum')
    totals = [0.0, 0.0, 0.0]
    size = 1000.0
    for b, count in enumerate(targets.counts):
        gt_labels, gt_boxes = targets.labels[b, :count], targets.boxes[b, :count]
        result = assigner.assign(
            InstanceData(
                scores=logits[b].detach(), bboxes=bbox_cxcywh_to_xyxy(boxes[b].detach()) * size
            ),
            InstanceData(labels=gt_labels, bboxes=bbox_cxcywh_to_xyxy(gt_boxes) * size),
            img_meta=dict(img_shape=(size, size)),
        )
        wanted = torch.zeros_like(logits[b])
        for query, index in enumerate(result.gt_inds.tolist()):
            if index > 0:
                wanted[query, gt_labels[index - 1]] = 1
                mine, truth = boxes[b, query][None], gt_boxes[index - 1][None]
                totals[1] += l1(mine, truth)
                totals[2] += 2.0 * giou(bbox_cxcywh_to_xyxy(mine), bbox_cxcywh_to_xyxy(truth))
        totals[0] += focal(logits[b], wanted)
    return [total / max(1, sum(targets.counts)) for total in totals]


@pytest.mark.parametrize('counts', [(2, 0, 5), (1, 1, 1), (0, 3, 0), (8, 11, 2), (0, 0, 0)])
def test_losses_of_all_layers_equal_a_loop_over_layers_and_pictures(criterion, counts):
    targets = make_targets(counts)
    logits, boxes = make_predictions()
    proposal_logits, proposal_boxes = (x[0] for x in make_predictions(1, queries=30))
    losses = criterion(logits, boxes, targets, proposal_logits, proposal_boxes)

    expected = {}
    objects = targets._replace(labels=torch.zeros_like(targets.labels))
    rows = [(prefix, *layer, targets) for prefix, *layer in zip(('d0.', 'd1.', ''), logits, boxes)]
    for prefix, *layer in [*rows, ('enc_', proposal_logits, proposal_boxes, objects)]:
        for name, loss in zip(('loss_cls', 'loss_bbox', 'loss_iou'), losses_in_a_loop(*layer)):
            expected[prefix + name] = loss
    assert list(losses) == [
        f'{p}{n}' for p in ('d0.', 'd1.', '', 'enc_') for n in list(losses)[6:9]
    ]
    for name, loss in losses.items():
        assert loss.shape == ()
        assert loss.item() == pytest.approx(
            float(torch.as_tensor(expected[name]).detach()), rel=1e-5
        ), name

    inputs = (logits, boxes)
    ours = torch.autograd.grad(sum(losses.values()), inputs, retain_graph=True)
    loop = torch.autograd.grad(sum(expected.values()), inputs, allow_unused=True)
    for gradient, wanted in zip(ours, loop):
        if wanted is None:  # no boxes to learn from
            assert not gradient.any()
            continue
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_losses_are_divided_by_the_mean_number_of_ground_truths_of_all_processes(
    criterion, monkeypatch
):
    logits, boxes = make_predictions()
    targets = make_targets()
    alone = criterion(logits, boxes, targets)

    def as_if_others_had_more(count, op):
        assert (count.item(), op) == (7, 'mean')
        count.fill_(21)

    monkeypatch.setattr('ddetr_plugin.models.losses.criterion.all_reduce', as_if_others_had_more)
    for name, loss in criterion(logits, boxes, targets).items():
        assert loss.item() == pytest.approx(alone[name].item() / 3), name


def test_more_ground_truths_than_queries_match_every_query(criterion):
    logits, boxes = make_predictions(1, 1, queries=3)
    losses = criterion(logits, boxes, make_targets((7,)))
    losses['loss_bbox'].backward()
    assert boxes.grad.abs().sum(-1).count_nonzero() == 3


def test_a_box_far_below_a_pixel_keeps_its_giou(criterion):
    box = torch.tensor([[0.5, 0.5, 1e-5, 1e-5]])
    targets = Targets.pad([torch.zeros(1, dtype=torch.long)], [box])
    losses = criterion(torch.zeros(1, 1, 1, NUM_CLASSES), box[None, None], targets)
    assert losses['loss_iou'].item() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize('variant', VARIANTS)
def test_no_ground_truth_gives_classification_loss_only_and_every_gradient(variant):
    model = build(tiny_config(variant))
    inputs, samples = batch(gts=(0, 0))
    losses = model.loss(inputs, samples)
    for name, loss in losses.items():
        assert (loss > 0) == name.endswith('loss_cls'), name
    sum(losses.values()).backward()
    # Distributed training waits for the gradient of every parameter.
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_picture_without_ground_truth_beside_another_gives_every_gradient(variant):
    model = build(tiny_config(variant))
    inputs, samples = batch(gts=(0, 3))
    losses = model.loss(inputs, samples)
    assert all(loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_targets_are_padded_to_the_largest_number_and_never_to_none():
    labels, boxes = (
        [torch.tensor([3, 1]), torch.empty(0).long()],
        [random_boxes(2), torch.empty(0, 4)],
    )
    targets = Targets.pad(labels, boxes)
    assert targets.labels.tolist() == [[3, 1], [0, 0]]
    assert torch.equal(targets.boxes[0], boxes[0])
    assert (targets.boxes[1] == 0.5).all()
    assert list(targets.counts) == [2, 0]
    none = Targets.pad(labels[1:], boxes[1:])
    assert none.labels.shape == (1, 1)
    assert none.boxes.shape == (1, 1, 4)
    assert none.labels.dtype == torch.int64
    assert list(none.counts) == [0]


def spoil(place, number):
    """Arguments of the criterion with one bad number in the third picture."""
    logits, boxes = (x.detach() for x in make_predictions())
    proposal_logits, proposal_boxes = (x[0].detach() for x in make_predictions(1, queries=30))
    targets = make_targets((2, 0, 5))
    if place == 'class logits of decoder layer 1':
        logits[1:, 2, 3] = number
    elif place == 'class logits of the last decoder layer':
        logits[2, 2, 3] = number
    elif place == 'boxes of decoder layer 0':
        boxes[:, 2, 3, 1] = number
        logits[1:, 0] = number
    elif place == 'boxes of the last decoder layer':
        boxes[-1, 2, 3, 1] = number
    elif place == 'class logits of the encoder proposals':
        proposal_logits[2, 9] = number
        logits[:] = number
    elif place == 'boxes of the encoder proposals':
        proposal_boxes[2, 9, 0] = number
        boxes[:] = number
    else:
        targets.boxes[2, 4, 2] = number
    return logits, boxes, targets, proposal_logits, proposal_boxes


@pytest.mark.parametrize(
    ('place', 'number'),
    [
        ('class logits of decoder layer 1', torch.nan),
        ('class logits of the last decoder layer', torch.nan),
        ('boxes of decoder layer 0', torch.nan),
        ('boxes of decoder layer 0', torch.inf),
        ('boxes of the last decoder layer', -torch.inf),
        ('class logits of the encoder proposals', torch.nan),
        ('boxes of the encoder proposals', torch.nan),
        ('ground-truth boxes', torch.nan),
        ('ground-truth boxes', torch.inf),
    ],
)
def test_the_first_tensor_that_is_not_finite_is_named_with_its_picture(criterion, place, number):
    with pytest.raises(ValueError, match=f'first bad tensor: {place}, picture 2 of the batch'):
        criterion(*spoil(place, number))


@pytest.mark.parametrize('number', [torch.nan, torch.inf, -torch.inf])
def test_a_bad_logit_of_a_class_that_no_picture_has_is_named(criterion, number):
    logits, boxes = (x.detach() for x in make_predictions())
    targets = make_targets((2, 0, 5))
    targets.labels.clamp_(max=NUM_CLASSES - 2)
    logits[1, 2, 3, NUM_CLASSES - 1] = number
    with pytest.raises(ValueError, match='class logits of decoder layer 1, picture 2'):
        criterion(logits, boxes, targets)


@pytest.mark.parametrize('place', ['class logits', 'boxes'])
def test_a_bad_number_in_a_batch_without_ground_truth_is_named(criterion, place):
    logits, boxes = (x.detach() for x in make_predictions())
    (logits if place == 'class logits' else boxes)[0, 1] = torch.nan
    with pytest.raises(ValueError, match=f'{place} of decoder layer 0, picture 1'):
        criterion(logits, boxes, make_targets((0, 0, 0)))


@pytest.mark.parametrize('label', [-1, NUM_CLASSES, 255])
def test_a_label_out_of_range_is_named_with_its_picture(criterion, label):
    logits, boxes = make_predictions()
    targets = make_targets()
    targets.labels[2, 1] = label
    with pytest.raises(ValueError, match=r'labels \(must be 0..3\), picture 2 of the batch'):
        criterion(logits, boxes, targets)


def test_a_cost_that_overflows_by_itself_is_said_to():
    config = criterion_config()
    config['assigner']['match_costs'] = [dict(type='ddetr_plugin.L1Cost', weight=1e39)]
    with pytest.raises(ValueError, match='a match cost itself overflows'):
        MODELS.build(config)(*make_predictions(), make_targets())


@pytest.mark.parametrize('counts', [COUNTS, (0, 0, 0)])
def test_a_step_is_matched_with_one_transfer_to_the_host(criterion, counts):
    logits, boxes = make_predictions()
    proposals = (x[0] for x in make_predictions(1, queries=30))
    targets = make_targets(counts)
    with count_transfers() as transfers:
        criterion(logits, boxes, targets, *proposals)
    assert transfers == ['cpu']


def test_losses_are_float32_and_the_same_under_autocast(criterion):
    logits, boxes = make_predictions()
    targets = make_targets()
    plain = criterion(logits, boxes, targets)
    with torch.autocast('cpu', torch.bfloat16):
        autocast = criterion(logits, boxes, targets)
    for name, loss in autocast.items():
        assert loss.dtype == torch.float32
        assert torch.equal(loss, plain[name])


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_losses_of_a_model_in_bfloat16_are_float32_and_near(variant):
    model = build(tiny_config(variant))
    inputs, samples = batch()
    plain = model.loss(inputs, samples)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(inputs, samples)
        sum(losses.values()).backward()
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    low, exact = ({k: x.detach() for k, x in found.items()} for found in (losses, plain))
    assert_as_near_as_rounding_allows(
        low, exact, lambda: model.loss(inputs, samples), model, torch.bfloat16
    )
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_an_iou_aware_score_is_trained_towards_the_iou_of_its_box():
    loss_cls = dict(type='mmdet.VarifocalLoss', use_sigmoid=True, loss_weight=1.0)
    aware = MODELS.build(
        dict(criterion_config(), type='ddetr_plugin.IoUAwareSetCriterion', loss_cls=loss_cls)
    )
    logits = torch.randn(1, 1, 1, NUM_CLASSES).requires_grad_()
    # The right half of the ground truth, and as much again beside it: IoU = 1 / 3.
    boxes = torch.tensor([0.6, 0.5, 0.2, 0.2]).view(1, 1, 1, 4).requires_grad_()
    targets = Targets.pad([torch.tensor([2])], [torch.tensor([[0.5, 0.5, 0.2, 0.2]])])
    wanted = torch.zeros(1, NUM_CLASSES)
    wanted[0, 2] = 1 / 3
    expected = VarifocalLoss(reduction='sum')(logits.flatten(0, 2), wanted)
    loss = aware(logits, boxes, targets)['loss_cls']
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert boxes.grad is None  # the score follows the box, not the box the score
