"""The mask head: numbers of the official network, losses, gradients, masks in pixels."""

import numpy as np
import pytest
import torch
from builders import batch, build, tiny_config
from mmdet.structures.mask import BitmapMasks
from transfers import count_transfers

from ddetr_plugin.models.criterion import Matches
from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.mask_head import MaskInputs
from ddetr_plugin.registry import MODELS


def mask_head_config(**changes):
    return {
        **dict(
            type='ddetr_plugin.MaskHead',
            embed_dims=32,
            num_heads=4,
            in_channels=[64, 128, 256],
            loss_mask=dict(type='mmdet.FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
            loss_dice=dict(type='mmdet.DiceLoss', naive_dice=True, eps=1.0),
        ),
        **changes,
    }


def masks_config(variant='base', mask_head=None, **changes):
    changes.setdefault('backbone', dict(out_indices=(0, 1, 2, 3)))
    return tiny_config(variant, mask_head=mask_head or mask_head_config(), **changes)


def masked_batch(**arguments):
    """`batch` with a random mask per box, in the size of the picture before padding."""
    inputs, samples = batch(**arguments)
    rng = np.random.default_rng(0)
    for sample in samples:
        height, width = sample.img_shape
        masks = rng.integers(0, 2, (len(sample.gt_instances), height, width), dtype=np.uint8)
        sample.gt_instances.masks = BitmapMasks(masks, height, width)
    return inputs, samples


def make_inputs(queries=7, in_channels=(64, 128, 256), channels=32):
    """Two pictures of 128 x 192 and 70 x 150, on levels of strides 8 to 64."""
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    levels = FeatureLevels.from_images(
        sizes, (128, 192), [(128, 192), (70, 150)], torch.device('cpu')
    )
    return MaskInputs(
        hidden=torch.randn(2, queries, channels),
        memory=torch.randn(2, sum(h * w for h, w in sizes), channels),
        levels=levels,
        neck_maps=[torch.randn(2, channels, *size) for size in sizes],
        backbone_maps=[torch.randn(2, c, 32 >> i, 48 >> i) for i, c in enumerate(in_channels)],
        batch_shape=(128, 192),
    )


@pytest.mark.parametrize('level', [2, 1])
def test_logits_equal_those_of_the_official_network_in_transformers(level):
    """For every query of padded pictures; the official network repeats each map per query."""
    modeling = pytest.importorskip('transformers.models.detr.modeling_detr')
    heads, channels = 8, 64
    in_channels = (24, 40, 56)[: level + 1]
    inputs = make_inputs(in_channels=in_channels, channels=channels)
    head = build(
        mask_head_config(
            embed_dims=channels, num_heads=heads, in_channels=list(in_channels), level=level
        )
    )
    attention = modeling.DetrMHAttentionMap(channels, channels, heads)
    attention.load_state_dict(
        {
            f'{theirs}.{part}': head.state_dict()[f'{ours}.{part}']
            for theirs, ours in (('q_linear', 'query_proj'), ('k_linear', 'key_proj'))
            for part in ('weight', 'bias')
        }
    )
    tokens = inputs.memory.split(inputs.levels.tokens_per_level, dim=1)[level]
    memory = tokens.transpose(1, 2).unflatten(2, inputs.levels.sizes[level])
    padding = inputs.levels.level_masks()[level]
    maps = attention(inputs.hidden, memory, mask=padding)  # (B, Q, M, H, W)

    x = inputs.neck_maps[level].repeat_interleave(7, dim=0)
    x = torch.cat((x, maps.flatten(0, 1)), dim=1)
    for i, (conv, norm) in enumerate(zip(head.convs, head.norms)):
        if i >= 2:
            finer = head.adapters[i - 2](inputs.backbone_maps[level + 2 - i])
            size = finer.shape[-2:]
            x = torch.nn.functional.interpolate(x, size=size) + finer.repeat_interleave(7, dim=0)
        x = torch.relu(norm(conv(x)))
    wanted = head.predictor(x)[:, 0]

    picture = torch.arange(2).repeat_interleave(7)
    logits = head(head.prepare(inputs), inputs.hidden.flatten(0, 1), picture)
    assert logits.shape == (14, 32, 48)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


def test_the_convolutions_are_those_of_the_official_network_in_transformers():
    modeling = pytest.importorskip('transformers.models.detr.modeling_detr')
    official = modeling.DetrMaskHeadSmallConv(256 + 8, [1024, 512, 256], 256)
    head = MODELS.build(
        mask_head_config(embed_dims=256, num_heads=8, in_channels=[256, 512, 1024])
    )
    kept = {k: v for k, v in official.state_dict().items()}
    wanted = sorted(tuple(v.shape) for v in kept.values())
    ours = (head.convs, head.norms, head.adapters, head.predictor)
    assert sorted(tuple(p.shape) for part in ours for p in part.parameters()) == wanted
