"""Our models against recorded outputs of the official release, on the same weights and inputs."""

import re

import numpy as np
import pytest
import torch
from golden import VARIANTS, load_golden

import ddetr_plugin.models.layers.attention as attention
from ddetr_plugin.checkpoints import export
from ddetr_plugin.ops import ms_deform_attn_fused_reference, native_load_error

# (outputs and losses, gradients), relative. The recording itself has float32 rounding.
TOLERANCES = {'reference': (1e-5, 1e-4), 'native': (1e-4, 1e-4)}


@pytest.fixture(scope='module', params=VARIANTS)
def golden(request):
    return load_golden(request.param)


@pytest.fixture(params=TOLERANCES)
def tolerances(request, monkeypatch):
    if request.param == 'reference':
        monkeypatch.setattr(attention, 'ms_deform_attn_fused', ms_deform_attn_fused_reference)
    elif native_load_error():
        pytest.skip(f'native op: {native_load_error()}')
    return TOLERANCES[request.param]


def assert_close(ours, recorded, relative):
    """Largest difference against the largest recorded value."""
    ours = np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours)
    assert ours.shape == recorded.shape
    assert np.abs(ours - recorded).max() <= relative * np.abs(recorded).max()


def test_logits_boxes_and_proposals_equal_the_official_ones(golden, tolerances):
    logits, boxes, queries, _ = golden.model.forward_batch(golden.inputs, golden.samples)
    assert_close(logits[-1], golden.arrays['pred_logits'], tolerances[0])
    assert_close(boxes[-1], golden.arrays['pred_boxes'], tolerances[0])
    assert_close(logits[:-1], golden.arrays['aux_logits'], tolerances[0])
    assert_close(boxes[:-1], golden.arrays['aux_boxes'], tolerances[0])
    assert (queries.proposal_logits is not None) == ('enc_logits0' in golden.arrays)
    if 'enc_logits0' in golden.arrays:
        proposals = queries.proposal_logits[..., 0]
        assert_close(proposals, golden.arrays['enc_logits0'], tolerances[0])
        assert_close(queries.proposal_boxes, golden.arrays['enc_boxes'], tolerances[0])


def expected_losses(record):
    """The recorded unweighted losses under our names, with our weights."""
    places = {'': '', 'enc': 'enc_', **{str(i): f'd{i}.' for i in range(record['cfg']['dec'] - 1)}}
    kinds = {'ce': ('loss_cls', 2.0), 'bbox': ('loss_bbox', 5.0), 'giou': ('loss_iou', 2.0)}
    expected = {}
    for name, value in record['losses'].items():
        match = re.fullmatch(r'loss_(ce|bbox|giou)_?(\w*)', name)
        if match:  # class_error and cardinality_error are no losses
            ours, weight = kinds[match[1]]
            expected[places[match[2]] + ours] = weight * value
    return expected


def test_losses_and_every_gradient_equal_the_official_ones(golden, tolerances):
    golden.model.zero_grad()
    losses = golden.model.loss(golden.inputs, golden.samples)
    total = sum(losses.values())
    total.backward()

    ours = {name: loss.item() for name, loss in losses.items()}
    assert ours == pytest.approx(expected_losses(golden.record), rel=tolerances[0])
    assert total.item() == pytest.approx(golden.record['total'], rel=tolerances[0])
    parameters = dict(golden.model.named_parameters())
    assert sorted(parameters) == sorted(golden.names[name] for name in golden.record['grads'])
    for name, (norm, total) in golden.record['grads'].items():
        gradient = parameters[golden.names[name]].grad.double()
        assert gradient.norm().item() == pytest.approx(norm, rel=tolerances[1]), name
        assert gradient.sum().item() == pytest.approx(total, abs=tolerances[1] * norm), name


def test_matches_of_the_last_layer_equal_the_official_ones(golden):
    logits, boxes = golden.model(golden.inputs, golden.samples, mode='tensor')
    assigner = golden.model.criterion.assigner
    for i in range(len(golden.samples)):
        gt_labels = torch.from_numpy(golden.arrays[f'gt_labels_{i}'])
        gt_boxes = torch.from_numpy(golden.arrays[f'gt_boxes_{i}'])
        cost = assigner.cost(logits[-1, i], boxes[-1, i], gt_labels, gt_boxes)
        query, gt = assigner.match(cost.numpy())
        recorded = golden.arrays[f'match_pred_{i}'], golden.arrays[f'match_gt_{i}']
        assert sorted(zip(query, gt)) == sorted(zip(*recorded))


def test_the_best_hundred_detections_equal_the_official_ones(golden):
    logits, boxes = golden.model(golden.inputs, golden.samples, mode='tensor')
    metas = [sample.metainfo for sample in golden.samples]
    results = golden.model.bbox_head.predict(logits[-1], boxes[-1], metas, rescale=False)
    for i, result in enumerate(results):
        assert result.labels.tolist() == golden.arrays[f'post_labels_{i}'].tolist()
        assert_close(result.scores, golden.arrays[f'post_scores_{i}'], 1e-5)
        assert_close(result.bboxes, golden.arrays[f'post_boxes_{i}'], 1e-5)


def test_the_official_state_dict_comes_back_bit_for_bit(golden):
    """Names, aliases and numbers, apart from the backbone, which the recordings lack."""
    back = export(golden.model.state_dict(), 'official')
    assert sorted(back) == sorted(golden.weights)
    for name, weight in golden.weights.items():
        assert torch.equal(back[name], weight), name


def test_the_variant_is_recognised(golden):
    names = {'two_stage': 'two-stage', 'single_scale': 'single-scale'}
    variant = golden.record['variant']
    assert golden.architecture.variant == names.get(variant, variant)
