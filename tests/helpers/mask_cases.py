"""Small models with a mask head, and what they read."""

import numpy as np
import torch
from builders import batch, tiny_config
from mmdet.structures.mask import BitmapMasks

from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.heads.task_head import HeadInputs


def mask_head_config(**changes) -> dict:
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


def masks_config(variant='base', mask_head=None, backbone=None, **changes):
    """`tiny_config` with a mask head."""
    return tiny_config(
        variant,
        mask_head=mask_head or mask_head_config(),
        backbone=dict(out_indices=(0, 1, 2, 3), **(backbone or {})),
        **changes,
    )


def masked_batch(**arguments):
    """`batch` with a random mask per box, in the size of the picture before padding."""
    inputs, samples = batch(**arguments)
    rng = np.random.default_rng(0)
    for sample in samples:
        height, width = sample.img_shape
        masks = rng.integers(0, 2, (len(sample.gt_instances), height, width), dtype=np.uint8)
        sample.gt_instances.masks = BitmapMasks(masks, height, width)
    return inputs, samples


def make_inputs(queries=7, in_channels=(64, 128, 256), channels=32) -> HeadInputs:
    """Two pictures of 128 x 192 and 70 x 150, on levels of strides 8 to 64."""
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    levels = FeatureLevels.from_images(
        sizes, (128, 192), [(128, 192), (70, 150)], torch.device('cpu')
    )
    return HeadInputs(
        hidden=torch.randn(2, queries, channels),
        memory=torch.randn(2, sum(h * w for h, w in sizes), channels),
        levels=levels,
        neck_maps=[torch.randn(2, channels, *size) for size in sizes],
        backbone_maps=[torch.randn(2, c, 32 >> i, 48 >> i) for i, c in enumerate(in_channels)],
        batch_shape=(128, 192),
    )
