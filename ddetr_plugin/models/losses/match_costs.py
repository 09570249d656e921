"""Costs of pairing predictions with ground truths, batched over layers and pictures."""

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from ddetr_plugin.models.boxes import pairwise_giou
from ddetr_plugin.registry import TASK_UTILS

__all__ = ['FocalCost', 'GIoUCost', 'L1Cost']

# Every cost is called with logits (..., Q, K), boxes (..., Q, 4), gt_labels (..., G) int64 and
# gt_boxes (..., G, 4); boxes are (cx, cy, w, h) normalised by the unpadded picture; leading
# dimensions broadcast. It returns (..., Q, G), lower is better.


@TASK_UTILS.register_module()
class FocalCost:
    """Focal loss of the pair's class minus that of its absence.

    Args:
        weight: factor of the cost.
        alpha: of the focal loss.
        gamma: of the focal loss.
        eps: keeps the logarithm finite; 1e-8 as in the official release.
    """

    def __init__(
        self, weight: float = 2.0, alpha: float = 0.25, gamma: float = 2.0, eps: float = 1e-8
    ):
        self.weight = weight
        self.alpha = alpha
        self.gamma = gamma
        self.eps = eps

    def __call__(self, logits: Tensor, boxes: Tensor, gt_labels: Tensor, gt_boxes: Tensor):
        # Gathered first: G is mostly far smaller than K.
        shape = torch.broadcast_shapes(logits.shape[:-2], gt_labels.shape[:-1])
        logits = logits.expand(*shape, -1, -1)
        index = gt_labels[..., None, :].expand(*shape, logits.shape[-2], -1)
        prob = logits.gather(-1, index).sigmoid()
        absent = (1 - self.alpha) * prob**self.gamma * -(1 - prob + self.eps).log()
        present = self.alpha * (1 - prob) ** self.gamma * -(prob + self.eps).log()
        return self.weight * (present - absent)


@TASK_UTILS.register_module()
class L1Cost:
    """L1 distance of normalised (cx, cy, w, h).

    Args:
        weight: factor of the cost.
    """

    def __init__(self, weight: float = 5.0):
        self.weight = weight

    def __call__(self, logits: Tensor, boxes: Tensor, gt_labels: Tensor, gt_boxes: Tensor):
        return self.weight * (boxes[..., :, None, :] - gt_boxes[..., None, :, :]).abs().sum(-1)


@TASK_UTILS.register_module()
class GIoUCost:
    """Negative generalised IoU (arXiv:1902.09630).

    Args:
        weight: factor of the cost.
    """

    def __init__(self, weight: float = 2.0):
        self.weight = weight

    def __call__(self, logits: Tensor, boxes: Tensor, gt_labels: Tensor, gt_boxes: Tensor):
        giou = pairwise_giou(bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(gt_boxes))
        return -self.weight * giou
