"""DETR with a mask head: mmdet's boxes, matches and queries, masks, frozen parts."""

import copy

import pytest
import torch
from builders import initialise
from mask_cases import masked_batch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import Config
from mmengine.registry import DefaultScope
from scipy.optimize import linear_sum_assignment

from ddetr_plugin.config_files import find_config
from ddetr_plugin.models.heads.panoptic_mask_head import INSTANCE_OFFSET
from ddetr_plugin.registry import MODELS

MASKS = 'detr-masks_r50_16xb4-500e_coco.py'
PANOPTIC = 'detr-panoptic_r50_16xb4-500e_coco.py'


def small(name=MASKS, **changes):
    """The model of a config, narrow and of 1 + 2 layers, for five classes, nothing loaded."""
    attention = dict(embed_dims=16, num_heads=2, dropout=0.0)
    ffn = dict(embed_dims=16, feedforward_channels=32, ffn_drop=0.0)
    layer = dict(self_attn_cfg=attention, ffn_cfg=ffn)
    config = Config.fromfile(find_config(name))
    model = dict(
        num_queries=12,
        backbone=dict(base_channels=8, init_cfg=None),
        neck=dict(in_channels=[256], out_channels=16),
        encoder=dict(num_layers=1, layer_cfg=layer),
        decoder=dict(num_layers=2, layer_cfg=dict(cross_attn_cfg=attention, **layer)),
        positional_encoding=dict(num_feats=8),
        bbox_head=dict(num_classes=5, embed_dims=16),
        mask_head=dict(embed_dims=16, num_heads=2, in_channels=[32, 64, 128]),
        test_cfg=dict(max_per_img=7),
    )
    if name == PANOPTIC:
        model['mask_head'].update(num_things=3, num_classes=5)
    config.merge_from_dict(dict(model=model))
    config.merge_from_dict(dict(model=changes))
    return config.model


def build(model):
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(copy.deepcopy(model))
    initialise(model)
    return model


def mmdets(model):
    """mmdet's DETR with the weights of one with masks."""
    plain = small()
    plain.update(type='DETR')
    plain.pop('mask_head')
    plain.backbone.out_indices = (3,)
    plain.bbox_head.type = 'DETRHead'
    plain = build(plain)
    state = model.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith('mask_head.')})
    return plain


@pytest.mark.parametrize('counts', [(3, 2), (3, 0), (0, 0)])
def test_losses_of_boxes_are_mmdets_and_every_parameter_learns(counts):
    model = build(small()).train()
    inputs, samples = masked_batch(gts=counts)
    losses = model.loss(inputs, samples)
    expected = mmdets(model).train().loss(inputs, samples)
    assert set(losses) - set(expected) == {'loss_mask', 'loss_dice'}
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_masks_belong_to_the_queries_of_least_cost():
    """The costs of DETR (arXiv:2005.12872, 3.1) written out; scipy matches."""
    model = build(small())
    inputs, samples = masked_batch(gts=(4, 3))
    with torch.no_grad():
        hidden, _ = model.forward_batch(inputs, samples)
        found = model.bbox_head.matches(hidden, samples)
        logits, boxes = (x[-1] for x in model.bbox_head(hidden))
    expected = set()
    for i, sample in enumerate(samples):
        height, width = sample.img_shape
        wanted = sample.gt_instances.bboxes / torch.tensor([width, height, width, height])
        cx, cy, w, h = boxes[i].unbind(-1)
        corners = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)
        centred = torch.cat(((wanted[:, :2] + wanted[:, 2:]) / 2, wanted[:, 2:] - wanted[:, :2]), 1)
        cost = -logits[i].softmax(-1)[:, sample.gt_instances.labels]
        cost = cost + 5 * (boxes[i][:, None] - centred).abs().sum(-1)
        cost = cost - 2 * bbox_overlaps(corners, wanted, mode='giou')
        expected |= {(i, int(q), int(g)) for q, g in zip(*linear_sum_assignment(cost))}
    rows = (found.picture.tolist(), found.query.tolist(), found.gt.tolist())
    assert set(zip(*rows)) == expected
    assert found.count == 7


def test_the_mask_head_reads_the_memory_its_padding_and_every_map_of_the_backbone():
    model = build(small()).eval()
    inputs, samples = masked_batch(image_shapes=((40, 96), (80, 50)))
    seen = {}
    model.encoder.register_forward_hook(
        lambda _, args, kwargs, out: seen.update(kwargs, memory=out), with_kwargs=True
    )
    with torch.no_grad():
        hidden, read = model.forward_batch(inputs, samples)
        maps = model.backbone(inputs)
        (neck,) = model.neck(maps[3:])
        alone = mmdets(model).eval().forward_transformer((neck,), samples)['hidden_states']
    torch.testing.assert_close(hidden, alone)
    assert torch.equal(read.hidden, hidden[-1])
    assert torch.equal(read.memory, seen['memory'])
    assert torch.equal(read.levels.padding_mask, seen['key_padding_mask'])
    assert read.levels.padding_mask.any()
    assert torch.equal(read.neck_maps[0], neck)
    assert [m.shape[1] for m in read.backbone_maps] == [32, 64, 128, 256]


def test_detections_are_mmdets_and_have_the_masks_of_their_queries():
    model = build(small()).eval()
    inputs, samples = masked_batch()
    with torch.no_grad():
        expected = mmdets(model).eval().predict(inputs, copy.deepcopy(samples))
        results = model.predict(inputs, samples)
        hidden, read = model.forward_batch(inputs, samples)
        scores, labels = model.bbox_head(hidden)[0][-1].softmax(-1)[..., :-1].max(-1)
        features = model.mask_head.prepare(read)
    for i, (result, plain) in enumerate(zip(results, expected)):
        found = result.pred_instances
        for key in ('bboxes', 'scores', 'labels'):
            torch.testing.assert_close(found[key], plain.pred_instances[key])
        assert len(found.queries.unique()) == len(found) == 7
        torch.testing.assert_close(scores[i, found.queries], found.scores)
        assert torch.equal(labels[i, found.queries], found.labels)
        with torch.no_grad():
            parts = model.mask_head.full_size_logits(
                features, read, i, found.queries, result.metainfo, rescale=True
            )
            assert torch.equal(found.masks, torch.cat(list(parts)) > 0)
        assert found.masks.shape == (7, *result.ori_shape)


def test_a_frozen_detector_learns_masks_alone():
    model = build(
        small(freeze_detector=True, encoder=dict(layer_cfg=dict(ffn_cfg=dict(ffn_drop=0.5))))
    )
    model.train()
    assert model.mask_head.training and not model.encoder.training
    inputs, samples = masked_batch()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    history = []
    for _ in range(20):
        losses = model.loss(inputs, samples)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    changed = {k.split('.')[0] for k, v in model.state_dict().items() if not v.equal(before[k])}
    assert changed == {'mask_head'}
    first, last = history[0], history[-1]
    assert last['loss_mask'] + last['loss_dice'] < first['loss_mask'] + first['loss_dice']
    assert {n for n in first if first[n] == last[n]} == set(first) - {'loss_mask', 'loss_dice'}


def test_things_and_stuff_are_merged_into_a_map():
    model = build(small(PANOPTIC)).eval()
    model.mask_head.threshold = 0.0
    inputs, samples = masked_batch()
    results = model.predict(inputs, samples)
    for sample in results:
        coded = sample.pred_panoptic_seg.sem_seg
        assert coded.shape == (1, *sample.ori_shape)
        detected = set(sample.pred_instances.labels.tolist())
        assert set((coded % INSTANCE_OFFSET).unique().tolist()) <= detected


def test_a_box_head_that_does_not_name_queries_is_refused():
    with pytest.raises(ValueError, match="must be of type 'ddetr_plugin.MaskDETRHead'"):
        build(small(bbox_head=dict(type='DETRHead')))
