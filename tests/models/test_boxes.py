"""Box arithmetic against mmdet and against scalar formulas."""

import math

import pytest
import torch
from mmdet.models.detectors import DeformableDETR
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import nn

from ddetr_plugin.models.boxes import (
    at_least_float32,
    inverse_sigmoid,
    pairwise_giou,
    regress_boxes,
    sine_embedding,
)


def random_boxes(*shape):
    centre, size = torch.rand(*shape, 2), torch.rand(*shape, 2) * 0.6 + 0.01
    return bbox_cxcywh_to_xyxy(torch.cat((centre, size), -1))


def scalar_giou(a, b):
    """By the definition, in Python numbers."""
    inter_w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    inter_h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter_w * inter_h
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter_w * inter_h / union - (hull - union) / hull


def test_giou_of_every_pair_equals_the_scalar_definition():
    boxes, others = random_boxes(2, 6), random_boxes(2, 4)
    expected = [
        [[scalar_giou(a, b) for b in theirs] for a in ours]
        for ours, theirs in zip(boxes.tolist(), others.tolist())
    ]
    assert torch.allclose(pairwise_giou(boxes, others), torch.tensor(expected), atol=1e-6)


def test_giou_of_every_pair_equals_that_of_mmdet_in_any_unit():
    boxes, others = random_boxes(7), random_boxes(5)
    expected = bbox_overlaps(boxes * 800, others * 800, mode='giou')
    assert torch.allclose(pairwise_giou(boxes, others), expected, atol=1e-5)
    assert torch.allclose(pairwise_giou(boxes * 800, others * 800), expected, atol=1e-5)


def test_giou_broadcasts_over_layers():
    boxes, others = random_boxes(3, 2, 6), random_boxes(2, 4)
    result = pairwise_giou(boxes, others)
    assert result.shape == (3, 2, 6, 4)
    assert torch.equal(result[1, 1], pairwise_giou(boxes[1, 1], others[1]))


def test_giou_of_a_pixel_of_a_large_picture_with_itself_is_one():
    pixel = torch.tensor([[0.5, 0.5, 0.5 + 1 / 1333, 0.5 + 1 / 800]])
    assert pairwise_giou(pixel, pixel).item() == pytest.approx(1, abs=1e-6)


def test_giou_of_boxes_without_area_is_finite_with_finite_gradients():
    degenerate = torch.tensor(
        [[0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.2, 0.9], [0.0, 0.0, 1.0, 1.0], [0.6, 0.6, 0.4, 0.4]],
        requires_grad=True,
    )
    giou = pairwise_giou(degenerate, degenerate.detach())
    giou.sum().backward()
    assert giou.isfinite().all()
    assert degenerate.grad.isfinite().all()
    # Two equal points have no union and no hull: nothing to score.
    assert giou[0, 0] == 0


def test_inverse_sigmoid_undoes_the_sigmoid_and_is_clamped():
    x = torch.linspace(-8, 8, 50, dtype=torch.float64)
    assert torch.allclose(inverse_sigmoid(x.sigmoid()), x)
    limit = math.log((1 - 1e-5) / 1e-5)
    ends = inverse_sigmoid(torch.tensor([-3.0, 0.0, 1.0, 2.0], dtype=torch.float64))
    # The clamped side alone is replaced: log(1e-5 / 1), not log(1e-5 / (1 - 1e-5)).
    assert ends.tolist() == pytest.approx([-limit, -limit, limit, limit], abs=2e-5)
    assert ends.tolist() == pytest.approx([math.log(1e-5)] * 2 + [-math.log(1e-5)] * 2)
    assert inverse_sigmoid(torch.rand(3, 4)).dtype == torch.float32


def test_sine_embedding_equals_that_of_mmdet():
    logits = torch.randn(2, 5, 4)
    expected = DeformableDETR.get_proposal_pos_embed(logits)
    embedding = sine_embedding(logits.sigmoid(), 128)
    assert embedding.shape == (2, 5, 512)
    assert torch.allclose(embedding, expected, atol=1e-5)


def test_sine_embedding_of_any_even_width_follows_the_formula():
    x = 0.37
    embedding = sine_embedding(torch.tensor([[x, 0.9]], dtype=torch.float64), 6)
    assert embedding.shape == (1, 12)
    expected = []
    for i in range(3):
        angle = 2 * math.pi * x / 10000 ** (2 * i / 6)
        expected += [math.sin(angle), math.cos(angle)]
    assert embedding[0, :6].tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match='num_feats must be even, got 5'):
        sine_embedding(torch.rand(1, 4), 5)


@pytest.mark.parametrize('coordinates', [2, 4])
def test_boxes_are_offsets_to_references_in_logit_space(coordinates):
    branch = nn.Sequential(nn.Linear(8, 4))
    hidden, reference = torch.randn(2, 3, 8), torch.rand(2, 3, coordinates)
    boxes = regress_boxes(branch, hidden, inverse_sigmoid(reference))
    offset = branch(hidden).detach()
    offset[..., :coordinates] += torch.logit(reference)
    assert torch.allclose(boxes, offset.sigmoid(), atol=1e-6)


def test_a_reference_at_infinity_gives_one_and_no_gradient():
    branch = nn.Sequential(nn.Linear(8, 4))
    boxes = regress_boxes(branch, torch.randn(1, 3, 8), torch.full((1, 3, 4), math.inf))
    boxes.sum().backward()
    assert (boxes == 1).all()
    assert not branch[0].weight.grad.any()


def test_box_offsets_keep_float32_under_bfloat16_autocast():
    branch = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    # Exactly representable, so that only the last layer could round.
    with torch.no_grad():
        for parameter in branch[0].parameters():
            parameter.copy_(parameter.bfloat16())
    hidden = torch.randn(2, 3, 8).bfloat16()
    logits = inverse_sigmoid(torch.rand(2, 3, 4))
    with torch.autocast('cpu', torch.bfloat16):
        between = branch[:-1](hidden)
        boxes = regress_boxes(branch, hidden, logits)
    assert between.dtype == torch.bfloat16
    assert boxes.dtype == torch.float32
    expected = (branch[-1](between.float()) + logits).sigmoid()
    assert torch.equal(boxes, expected)


def test_sixteen_bit_numbers_are_widened_and_others_left_alone():
    assert at_least_float32(torch.rand(2).half()).dtype == torch.float32
    assert at_least_float32(torch.rand(2).bfloat16()).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        x = torch.rand(2, dtype=dtype)
        assert at_least_float32(x) is x
