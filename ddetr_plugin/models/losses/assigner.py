"""One-to-one matching of predictions and ground truths."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet.models.task_modules.assigners.match_cost import BaseMatchCost
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ddetr_plugin.models.boxes import at_least_float32
from ddetr_plugin.models.losses.targets import Match
from ddetr_plugin.registry import TASK_UTILS

__all__ = ['HungarianAssigner', 'NotFiniteError']


class NotFiniteError(ValueError):
    """A number is NaN or infinite where it must not be; the message names the first tensor."""


_COUNTERPARTS = {
    'FocalLossCost': 'ddetr_plugin.FocalCost',
    'BBoxL1Cost': 'ddetr_plugin.L1Cost',
    'IoUCost': 'ddetr_plugin.GIoUCost',
}


@TASK_UTILS.register_module()
class HungarianAssigner(BaseAssigner):
    """Pairs predictions and ground truths so that the sum of costs is least (arXiv:2005.12872).

    Args:
        match_costs: configs of costs of this package, such as `FocalCost`, `L1Cost`, `GIoUCost`;
            one config, or a sequence.

    Raises:
        ValueError: `match_costs` is empty, or holds a cost of mmdet, which compares one picture
            at a time.
    """

    def __init__(self, match_costs: dict | Sequence[dict]):
        if isinstance(match_costs, dict):
            match_costs = [match_costs]
        if not match_costs:
            raise ValueError('match_costs must name at least one cost, got none')
        self.match_costs = [TASK_UTILS.build(cost) for cost in match_costs]
        for cost in self.match_costs:
            if isinstance(cost, BaseMatchCost):
                name = type(cost).__name__
                ours = _COUNTERPARTS.get(name, 'a cost with the interface of ddetr_plugin.L1Cost')
                raise ValueError(
                    f"match_costs holds mmdet's {name}, which compares one picture at a time; "
                    f'use {ours} instead'
                )

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes: Tensor, gt_labels: Tensor, gt_boxes: Tensor) -> Tensor:
        """Weighted costs of all pairs, float32 or better, outside autocast.

        Args:
            logits: (..., Q, K).
            boxes: (..., Q, 4), (cx, cy, w, h) normalised by the unpadded picture.
            gt_labels: (..., G) int64, 0..K-1; leading dimensions broadcast.
            gt_boxes: (..., G, 4), as `boxes`.

        Returns:
            (..., Q, G); NaN for a ground truth whose label is not one of the K classes, and for a
            query with a logit that is NaN or infinite, whatever its class, so that they are found
            where costs reach the host, and not by a crash of the device or in the weights.
        """
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        gt_boxes = gt_boxes.to(boxes.dtype)
        last_class = logits.shape[-1] - 1
        known = gt_labels.clamp(0, last_class)
        with torch.autocast(logits.device.type, enabled=False):
            cost = sum(cost(logits, boxes, known, gt_boxes) for cost in self.match_costs)
            cost = cost + logits.sum(-1, keepdim=True) * 0
        return cost.masked_fill((known != gt_labels)[..., None, :], math.nan)

    def match(self, cost: np.ndarray) -> Match:
        """The cheapest one-to-one pairs.

        Args:
            cost: (Q, G), finite. Either may be the larger one, or zero.

        Returns:
            Two int64 arrays of length min(Q, G): query index, rising, and ground-truth index.

        Raises:
            NotFiniteError: a cost is NaN or infinite.
        """
        # scipy refuses NaN, but takes infinity as "forbidden" and pairs around it.
        self._check_finite(cost)
        return linear_sum_assignment(cost)

    @staticmethod
    def _check_finite(cost: np.ndarray) -> None:
        finite = np.isfinite(cost)
        if not finite.all():
            raise NotFiniteError(
                f'matching needs finite costs, got {int((~finite).sum())} of {cost.size} that are '
                'NaN or infinite'
            )

    def match_batch(
        self, costs: Sequence[Tensor], num_gts: Sequence[Sequence[int]]
    ) -> list[list[list[Match]]]:
        """Matches all prediction sets and pictures of a step with one transfer to the host.

        Args:
            costs: tensors (N_i, B, Q_i, G_i), all on one device.
            num_gts: for each of them B numbers of ground truths; columns beyond are padding.

        Returns:
            Lists by set, layer and image: `result[i][n][b]` is what `match` gives.

        Raises:
            NotFiniteError: a cost is NaN or infinite, be it in the padding; the message says of
                which set, layer, picture.
        """
        host = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        results, start = [], 0
        for i, (cost, numbers) in enumerate(zip(costs, num_gts, strict=True)):
            block = host[start : start + cost.numel()].reshape(cost.shape)
            start += cost.numel()
            layers = []
            for n, layer in enumerate(block):
                pictures = []
                for b, (table, num) in enumerate(zip(layer, numbers)):
                    try:
                        # In a picture without ground truth the padding alone shows what is wrong.
                        self._check_finite(table)
                        pictures.append(self.match(table[:, :num]))
                    except NotFiniteError as error:
                        place = f'prediction set {i}, layer {n}, picture {b}'
                        raise NotFiniteError(f'{error} ({place})') from None
                layers.append(pictures)
            results.append(layers)
        return results

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        img_meta: dict | None = None,
        **kwargs,
    ) -> AssignResult:
        """mmdet's interface, so that this assigner drops into mmdet's DETR heads.

        Args:
            pred_instances: with `scores` (Q, K), logits, and `bboxes` (Q, 4), (x1, y1, x2, y2) in
                pixels.
            gt_instances: with `labels` (G,) and `bboxes` (G, 4), as above.
            img_meta: with `img_shape` (h, w) in pixels.
            **kwargs: mmdet passes more to other assigners; nothing here is read from it.

        Returns:
            AssignResult: `gt_inds` (Q,): 0 for background, else 1 + index of the ground truth;
            `labels` (Q,): -1 or the class.

        Raises:
            ValueError: `img_meta` has no `img_shape`.
            NotFiniteError: a prediction or a ground truth is NaN, infinite or of an unknown class:
                the message names the first such tensor.
        """
        if not img_meta or 'img_shape' not in img_meta:
            raise ValueError(
                f'img_meta must have img_shape (h, w), which normalises the boxes; got {img_meta}'
            )
        labels = gt_instances.labels
        device = labels.device
        num_preds, num_gts = len(pred_instances), len(gt_instances)
        gt_inds = torch.zeros(num_preds, dtype=torch.long, device=device)
        assigned_labels = torch.full_like(gt_inds, -1)
        if num_preds and num_gts:
            height, width = img_meta['img_shape'][:2]
            size = pred_instances.bboxes.new_tensor((width, height, width, height))
            cost = self.cost(
                pred_instances.scores,
                bbox_xyxy_to_cxcywh(pred_instances.bboxes / size),
                labels,
                bbox_xyxy_to_cxcywh(gt_instances.bboxes / size),
            )
            try:
                match = self.match(cost.cpu().numpy())
            except NotFiniteError as error:
                bad = _first_bad(pred_instances, gt_instances)
                raise NotFiniteError(f'{error}; {bad}') from None
            query, gt = (torch.from_numpy(x).to(device) for x in match)
            gt_inds[query] = gt + 1
            assigned_labels[query] = labels[gt]
        return AssignResult(num_gts, gt_inds, max_overlaps=None, labels=assigned_labels)


def _first_bad(pred_instances: InstanceData, gt_instances: InstanceData) -> str:
    """Names the first tensor of one picture that is not as it must be."""
    num_classes = pred_instances.scores.shape[-1]
    for name, tensor in (
        ('pred_instances.scores', pred_instances.scores),
        ('pred_instances.bboxes', pred_instances.bboxes),
        ('gt_instances.bboxes', gt_instances.bboxes),
    ):
        if not tensor.isfinite().all():
            return f'the first bad tensor: {name}'
    labels = gt_instances.labels
    if ((labels < 0) | (labels >= num_classes)).any():
        return f'the first bad tensor: gt_instances.labels (must be 0..{num_classes - 1})'
    return 'predictions and ground truths are finite, so a match cost itself overflows'
