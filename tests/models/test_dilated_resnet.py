"""DilatedResNet: dilation as torchvision reads it, for the DC5 models."""

import torch
from mmdet.registry import MODELS as MMDET_MODELS
from torch import nn

from ddetr_plugin.registry import MODELS

DC5 = dict(depth=50, base_channels=8, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
DC5.update(out_indices=(2, 3), norm_eval=True)


def build(**changes):
    backbone = MODELS.build(dict(type='ddetr_plugin.DilatedResNet') | DC5 | changes)
    backbone.eval()  # mmdet's returns None
    return backbone


def dilations(stage):
    return [block.conv2.dilation[0] for block in stage]


def test_the_first_block_of_a_dilated_stage_keeps_the_dilation_of_the_stage_before():
    assert dilations(build().layer4) == [1, 2, 2]
    assert dilations(build().layer3) == [1] * 6
    both = build(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    assert dilations(both.layer3) == [1, 2, 2, 2, 2, 2]
    assert dilations(both.layer4) == [2, 4, 4]


def test_no_other_convolution_is_dilated():
    for name, module in build().named_modules():
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1):
            assert name in ('layer4.1.conv2', 'layer4.2.conv2')


def test_the_last_stage_keeps_the_size_of_the_one_before():
    third, fourth = build()(torch.randn(1, 3, 64, 96))
    assert third.shape[-2:] == fourth.shape[-2:] == (4, 6)  # stride 16


def test_without_dilation_it_is_the_resnet_of_mmdet():
    plain = dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1))
    ours = build(**plain)
    theirs = MMDET_MODELS.build(dict(type='mmdet.ResNet') | DC5 | plain)
    theirs.eval()
    theirs.load_state_dict(ours.state_dict())
    picture = torch.randn(1, 3, 64, 96)
    for mine, other in zip(ours(picture), theirs(picture)):
        assert torch.equal(mine, other)


def test_the_dilated_stage_equals_one_written_by_hand():
    backbone = build()
    stage = backbone.layer4

    def by_hand(x):
        for i, block in enumerate(stage):
            step = 1 if i == 0 else 2
            conv = nn.functional.conv2d
            out = block.bn1(conv(x, block.conv1.weight)).relu()
            out = conv(out, block.conv2.weight, padding=step, dilation=step)
            out = block.bn3(conv(block.bn2(out).relu(), block.conv3.weight))
            if i == 0:
                shortcut, norm = block.downsample
                x = norm(conv(x, shortcut.weight))
            x = (out + x).relu()
        return x

    features = torch.randn(1, stage[0].conv1.in_channels, 5, 7)
    torch.testing.assert_close(stage(features), by_hand(features))
