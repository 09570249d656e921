"""Masks of the ground truths of a batch, as one tensor."""

from collections.abc import Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ddetr_plugin.models.feature_levels import Size

__all__ = ['padded_masks']


def padded_masks(
    gt_instances: Sequence[InstanceData], batch_shape: Size, device: torch.device
) -> Tensor:
    """All masks of a batch, (sum of n, *batch_shape) uint8."""
    total = sum(len(g) for g in gt_instances)
    padded = torch.zeros((total, *batch_shape), dtype=torch.uint8, device=device)
    start = 0
    for i, instances in enumerate(gt_instances):
        if 'masks' not in instances:
            raise ValueError(
                f'gt_instances of picture {i} have no masks, which a mask head is trained on; load '
                "them with dict(type='LoadAnnotations', with_bbox=True, with_mask=True)"
            )
        masks = instances.masks
        if not isinstance(masks, Tensor):
            masks = masks.to_tensor(torch.uint8, torch.device('cpu'))
        height, width = masks.shape[-2:]
        if height > batch_shape[0] or width > batch_shape[1]:
            raise ValueError(
                f'masks of picture {i} are {height} x {width}, larger than the batch of '
                f'{tuple(batch_shape)}; were they resized with the picture?'
            )
        end = start + len(masks)
        padded[start:end, :height, :width].copy_(masks, non_blocking=True)
        start = end
    return padded
