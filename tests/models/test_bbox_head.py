"""DeformableDETRHead: branches, initial values, errors, detections."""

import pytest
import torch
from builders import batch, build, tiny_config
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy

from ddetr_plugin.models import DeformableDETRHead


def make_head(share_branches=True, num_layers=3, **arguments):
    head = DeformableDETRHead(
        num_classes=4,
        embed_dims=6,
        num_layers=num_layers,
        share_branches=share_branches,
        **arguments,
    )
    head.init_weights()
    return head


def randomised(head):
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head


@pytest.mark.parametrize('share_branches', [True, False])
def test_classes_start_rare_and_boxes_at_their_reference(share_branches):
    head = make_head(share_branches, prior_prob=0.02)
    assert len(head.cls_branches) == len(head.reg_branches) == (1 if share_branches else 3)
    for classifier in head.cls_branches:
        torch.testing.assert_close(classifier.bias.sigmoid(), torch.full((4,), 0.02))
    for i, branch in enumerate(head.reg_branches):
        assert not branch[-1].weight.any()
        # Only the first box of all starts small; later ones start as the one before.
        assert branch[-1].bias.tolist() == ([0, 0, -2, -2] if i == 0 else [0, 0, 0, 0])
    reference = torch.rand(2, 5, 4) * 0.9 + 0.05
    boxes = head.regress(2, torch.randn(2, 5, 6), reference)
    if not share_branches:
        torch.testing.assert_close(boxes, reference)


def test_the_initial_size_is_that_of_the_config():
    head = make_head(initial_size_logit=0.0)
    reference = torch.rand(2, 5, 4) * 0.9 + 0.05
    torch.testing.assert_close(head.regress(0, torch.randn(2, 5, 6), reference), reference)
    small = make_head().regress(0, torch.randn(2, 5, 6), reference[..., :2])
    torch.testing.assert_close(small[..., :2], reference[..., :2])
    assert (small[..., 2:] - 0.119).abs().max() < 0.001


def test_shared_branches_serve_every_layer_and_others_one_each():
    hidden, reference = torch.randn(3, 2, 5, 6), torch.rand(2, 5, 4)
    for share_branches in (True, False):
        head = randomised(make_head(share_branches))
        logits = head.classify(hidden)
        assert logits.shape == (3, 2, 5, 4)
        for layer in range(3):
            index = 0 if share_branches else layer
            torch.testing.assert_close(logits[layer], head.cls_branches[index](hidden[layer]))
            offset = head.reg_branches[index](hidden[layer])
            wanted = (offset + torch.logit(reference, eps=1e-5)).sigmoid()
            torch.testing.assert_close(head.regress(layer, hidden[layer], reference), wanted)


def test_a_decoder_with_another_number_of_layers_is_refused():
    for share_branches in (True, False):
        head = make_head(share_branches)
        for layer in (-1, 3):
            with pytest.raises(ValueError, match='num_layers=3, but the decoder asks for layer'):
                head.regress(layer, torch.zeros(1, 5, 6), torch.zeros(1, 5, 2))
        for layers in (2, 4):
            with pytest.raises(ValueError, match=f'num_layers=3 layers, got {layers}'):
                head.classify(torch.zeros(layers, 1, 5, 6))


@pytest.mark.parametrize('layers', [1, 3])
def test_a_model_whose_decoder_and_head_disagree_says_how_to_mend_it(layers):
    model = build(tiny_config(bbox_head=dict(num_layers=layers)))
    with pytest.raises(ValueError, match='set num_layers of decoder and bbox_head to the same'):
        model.loss(*batch())


def test_logits_and_boxes_are_float32_under_bfloat16_autocast():
    for share_branches in (True, False):
        head = randomised(make_head(share_branches))
        with torch.autocast('cpu', torch.bfloat16):
            hidden = torch.randn(3, 2, 5, 6).bfloat16()
            assert head.classify(hidden).dtype == torch.float32
            assert head.regress(0, hidden[0], torch.rand(2, 5, 2)).dtype == torch.float32


def brute_force_detections(logits, boxes, count):
    """(score, label, query), best first."""
    pairs = [
        (score, label, query)
        for query, row in enumerate(logits.sigmoid().tolist())
        for label, score in enumerate(row)
    ]
    best = sorted(pairs, reverse=True)[:count]
    return [(score, label, boxes[query]) for score, label, query in best]


@pytest.mark.parametrize(('max_per_img', 'rescale'), [(7, True), (7, False), (1000, True)])
def test_the_best_pairs_of_query_and_class_become_boxes_in_pixels(max_per_img, rescale):
    head = make_head(max_per_img=max_per_img)
    logits, boxes = torch.randn(2, 5, 4), torch.rand(2, 5, 4)
    metas = [
        dict(img_shape=(60, 80), scale_factor=(0.5, 0.25)),
        dict(img_shape=(33, 100), scale_factor=(2.0, 1.5)),
    ]
    results = head.predict(logits, boxes, metas, rescale)
    sizes = [(160, 240), (50, 22)] if rescale else [(80, 60), (100, 33)]
    count = min(max_per_img, 5 * 4)
    for result, (width, height), *prediction in zip(results, sizes, logits, boxes):
        expected = brute_force_detections(*prediction, count)
        assert len(result) == count
        assert result.scores.tolist() == pytest.approx([score for score, _, _ in expected])
        assert result.labels.tolist() == [label for _, label, _ in expected]
        assert result.labels.dtype == torch.int64
        size = torch.tensor([width, height, width, height])
        wanted = torch.stack([bbox_cxcywh_to_xyxy(box) * size for _, _, box in expected])
        torch.testing.assert_close(result.bboxes, wanted)


def test_boxes_that_reach_out_of_the_picture_are_not_clipped():
    boxes = torch.tensor([[[0.0, 1.0, 0.5, 0.5]]])
    meta = dict(img_shape=(40, 60))
    result = make_head().predict(torch.zeros(1, 1, 4), boxes, [meta], rescale=False)[0]
    assert result.bboxes[0].tolist() == [-15, 30, 15, 50]


def test_a_picture_without_scale_factor_was_not_resized():
    head, meta = make_head(), dict(img_shape=(40, 60))
    predictions = torch.zeros(1, 1, 4), torch.rand(1, 1, 4)
    for rescale in (True, False):
        scaled = head.predict(*predictions, [meta | dict(scale_factor=(1.0, 1.0))], rescale)
        assert torch.equal(head.predict(*predictions, [meta], rescale)[0].bboxes, scaled[0].bboxes)


@pytest.mark.parametrize(
    'change', [dict(num_classes=0), dict(num_layers=0), dict(max_per_img=0), dict(prior_prob=1.0)]
)
def test_absurd_numbers_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        DeformableDETRHead(**dict(dict(num_classes=3, embed_dims=8, num_layers=2), **change))
