"""mmdet's own models on our operator: losses, gradients and detections stay mmdet's."""

import statistics

import pytest
import torch
from mmdet_models import CONFIGS, build_tiny, supply_nms, tiny_batch
from rounding import assert_as_near_as_rounding_allows

from ddetr_plugin.ops import mmcv_replacement, replace_mmcv_op

# Encoder and decoder layers on mmcv's attention; Mask2Former's decoder has none.
CALLS = dict.fromkeys(CONFIGS, 3) | {'Mask2Former': 1}


@pytest.fixture(autouse=True)
def nms(monkeypatch):
    supply_nms(monkeypatch)


@pytest.fixture(scope='module', params=CONFIGS)
def name_and_model(request):
    return request.param, build_tiny(request.param)


@pytest.fixture
def spy(monkeypatch):
    """The dtypes of value and locations in every call of our operator."""
    calls = []
    real = mmcv_replacement.ms_deform_attn

    def spied(value, shapes, starts, locations, weights):
        calls.append((value.dtype, locations.dtype))
        return real(value, shapes, starts, locations, weights)

    monkeypatch.setattr(mmcv_replacement, 'ms_deform_attn', spied)
    return calls


def losses_of(name, model):
    """The total, and every loss; DINO's noise and Mask2Former's points are drawn alike."""
    inputs, samples = tiny_batch(name)
    torch.manual_seed(1)
    return model.parse_losses(model.train().loss(inputs, samples))


def losses_and_gradients(name, model):
    model.zero_grad(set_to_none=True)
    total, losses = losses_of(name, model)
    total.backward()
    gradients = {
        key: parameter.grad
        for key, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {key: value.item() for key, value in losses.items()}, gradients


def detections(name, model):
    inputs, samples = tiny_batch(name)
    with torch.no_grad():
        predicted = model.eval().predict(inputs, samples, rescale=False)
    return [sample.pred_instances for sample in predicted]


def test_losses_and_every_gradient_are_those_of_mmcv(name_and_model, spy):
    name, model = name_and_model
    expected_losses, expected = losses_and_gradients(name, model)
    assert not spy
    with replace_mmcv_op():
        losses, gradients = losses_and_gradients(name, model)
    assert spy == [(torch.float32, torch.float32)] * CALLS[name]
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    assert gradients.keys() == expected.keys()
    assert len(gradients) > 50
    largest = max(gradient.norm() for gradient in expected.values())
    differences = {}
    for key, gradient in expected.items():
        # Some gradients are zero but for rounding: biases in front of a softmax or a norm.
        scale = gradient.norm() + 1e-4 * largest
        differences[key] = ((gradients[key] - gradient).norm() / scale).item()
    # Of some 100,000 samples, one may lie so close to a cell's border that rounding decides which
    # side's slope it takes.
    assert max(differences.values()) < 1e-2, max(differences, key=differences.get)
    assert statistics.median(differences.values()) < 1e-5
    losses_and_gradients(name, model)
    assert len(spy) == CALLS[name]


def test_detections_are_those_of_mmcv(name_and_model, spy):
    name, model = name_and_model
    expected = detections(name, model)
    with replace_mmcv_op():
        ours = detections(name, model)
    assert len(spy) == CALLS[name]
    for mine, other in zip(ours, expected, strict=True):
        assert len(mine) == len(other) > 0
        assert mine.labels.equal(other.labels)
        torch.testing.assert_close(mine.scores, other.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.bboxes, other.bboxes, rtol=1e-4, atol=1e-2)
        if 'masks' in other:
            # A pixel on the edge may flip.
            assert (mine.masks != other.masks).float().mean() < 1e-3


def test_under_autocast_losses_stay_near_those_of_float32(name_and_model, spy):
    name, model = name_and_model
    if name == 'DDQ':
        pytest.skip("mmdet's auxiliary loss of DDQ mixes dtypes under autocast, on any operator")
    expected, _ = losses_of(name, model)
    with replace_mmcv_op(), torch.autocast('cpu', torch.bfloat16):
        loss, _ = losses_of(name, model)
    loss.backward()
    # With whatever proposals and matches the roundings change.
    assert_as_near_as_rounding_allows(
        dict(total=loss.detach()),
        dict(total=expected.detach()),
        lambda: dict(total=losses_of(name, model)[0]),
        model,
        torch.bfloat16,
    )
    assert {value for value, _ in spy} == {torch.bfloat16}
    assert len(spy) == CALLS[name]


def test_under_autocast_scores_stay_near_those_of_float32(name_and_model, spy):
    name, model = name_and_model

    def scores():
        found = detections(name, model)
        return {f'scores of {i}': one.scores.float() for i, one in enumerate(found)}

    expected = scores()
    with replace_mmcv_op(), torch.autocast('cpu', torch.bfloat16):
        ours = scores()
    assert {value for value, _ in spy} == {torch.bfloat16}
    # With whatever queries change places and whatever pixels of masks pass a threshold.
    assert_as_near_as_rounding_allows(ours, expected, scores, model, torch.bfloat16)


def test_encoders_sample_at_float32_coordinates_under_autocast(name_and_model, spy):
    name, model = name_and_model
    with replace_mmcv_op(), torch.autocast('cpu', torch.bfloat16):
        detections(name, model)
    assert spy[0] == (torch.bfloat16, torch.float32)
