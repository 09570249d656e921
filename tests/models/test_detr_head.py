"""FocalDETRHead: mmdet's DETR head with a focal loss, matched at once."""

import pytest
import torch
from builders import batch
from mmdet.registry import MODELS as MMDET_MODELS

from ddetr_plugin.models import FocalDETRHead
from ddetr_plugin.registry import MODELS

LOSSES = dict(
    loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, loss_weight=2.0),
    loss_bbox=dict(type='mmdet.L1Loss', loss_weight=5.0),
    loss_iou=dict(type='mmdet.GIoULoss', eps=1e-12, loss_weight=2.0),
)
ASSIGNER = dict(
    type='ddetr_plugin.HungarianAssigner',
    match_costs=[
        dict(type='ddetr_plugin.FocalCost', weight=2.0),
        dict(type='ddetr_plugin.L1Cost', weight=5.0),
        dict(type='ddetr_plugin.GIoUCost', weight=2.0),
    ],
)
MMDET_ASSIGNER = dict(
    type='mmdet.HungarianAssigner',
    match_costs=[
        dict(type='mmdet.FocalLossCost', weight=2.0),
        dict(type='mmdet.BBoxL1Cost', weight=5.0, box_format='xywh'),
        dict(type='mmdet.IoUCost', iou_mode='giou', weight=2.0),
    ],
)


def make_head(**changes):
    config = dict(
        type='ddetr_plugin.FocalDETRHead',
        num_classes=5,
        embed_dims=16,
        **LOSSES,
        train_cfg=dict(assigner=ASSIGNER),
        test_cfg=dict(max_per_img=30),
    )
    return MODELS.build(config | changes)


def mmdet_twin(head):
    """mmdet's DETRHead with the same weights, assigned by mmdet's own assigner and costs."""
    twin = MMDET_MODELS.build(
        dict(
            type='mmdet.DETRHead',
            num_classes=5,
            embed_dims=16,
            **LOSSES,
            train_cfg=dict(assigner=MMDET_ASSIGNER),
            test_cfg=dict(max_per_img=30),
        )
    )
    names = {
        'cls_branch': 'fc_cls',
        'reg_branch.0': 'reg_ffn.layers.0.0',
        'reg_branch.2': 'reg_ffn.layers.1',
        'reg_branch.4': 'fc_reg',
    }
    state = {}
    for key, value in head.state_dict().items():
        module, kind = key.rsplit('.', 1)
        state[f'{names[module]}.{kind}'] = value
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize('counts', [(3, 2), (4, 0), (0, 0)])
def test_losses_and_gradients_are_those_of_mmdets_head_with_focal_loss(counts):
    head = make_head()
    twin = mmdet_twin(head)
    _, samples = batch(gts=counts)
    hidden = torch.randn(3, 2, 12, 16)
    gradients, losses = [], []
    for module in (head, twin):
        states = hidden.clone().requires_grad_()
        losses.append(module.loss(states, batch_data_samples=samples))
        sum(losses[-1].values()).backward()
        gradients.append(states.grad)
    assert losses[0].keys() == losses[1].keys()
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('rescale', [True, False])
def test_detections_are_those_of_mmdets_head(rescale):
    head = make_head()
    twin = mmdet_twin(head)
    _, samples = batch()
    hidden = torch.randn(3, 2, 12, 16)
    ours = head.predict(hidden, samples, rescale=rescale)
    theirs = twin.predict(hidden, batch_data_samples=samples, rescale=rescale)
    for one, other, sample in zip(ours, theirs, samples):
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.scores, other.scores)
        # mmdet clips boxes to the picture.
        height, width = sample.ori_shape if rescale else sample.img_shape
        limits = torch.tensor([width, height, width, height])
        clipped = torch.minimum(one.bboxes.clamp(min=0), limits)
        torch.testing.assert_close(clipped, other.bboxes, rtol=1e-5, atol=1e-3)


def test_scores_start_at_the_prior():
    head = make_head(prior_prob=0.02)
    head.init_weights()
    torch.testing.assert_close(head.cls_branch.bias.sigmoid(), torch.full((5,), 0.02))


def test_a_wider_picture_keeps_no_more_detections_than_pairs_of_query_and_class():
    _, samples = batch()
    results = make_head(test_cfg=dict(max_per_img=1000)).predict(torch.randn(1, 2, 7, 16), samples)
    assert [len(result.scores) for result in results] == [7 * 5] * 2


def test_a_head_without_an_assigner_predicts_and_has_no_loss():
    head = make_head(train_cfg=None, test_cfg=None)
    _, samples = batch()
    hidden = torch.randn(1, 2, 40, 16)
    assert len(head.predict(hidden, samples)[0].scores) == 100
    with pytest.raises(ValueError, match=r'train_cfg = dict\(assigner='):
        head.loss(hidden, samples)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_classes=0), 'must be positive'),
        (dict(test_cfg=dict(max_per_img=0)), 'must be positive'),
        (dict(prior_prob=1.0), 'between 0 and 1'),
        (dict(test_cfg=dict(max_per_img=5, nms=dict())), 'test_cfg must hold max_per_img'),
        (dict(train_cfg=dict(sampler=dict())), 'train_cfg must hold assigner'),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make_head(**changes)


def test_boxes_and_scores_are_float32_under_autocast():
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits, boxes = make_head()(torch.randn(2, 1, 3, 16))
    assert logits.dtype == boxes.dtype == torch.float32
    assert boxes.min() > 0 and boxes.max() < 1
    assert isinstance(make_head(), FocalDETRHead)
