"""One-to-one matching of predictions and ground truths."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ddetr_plugin.models.boxes import at_least_float32
from ddetr_plugin.registry import TASK_UTILS

__all__ = ['HungarianAssigner']

Match = tuple[np.ndarray, np.ndarray]


@TASK_UTILS.register_module()
class HungarianAssigner(BaseAssigner):
    """Pairs predictions and ground truths so that the sum of costs is least (arXiv:2005.12872).

    Args:
        match_costs: configs of costs of this package, such as `FocalCost`, `L1Cost`, `GIoUCost`.

    Raises:
        ValueError: `match_costs` is empty.
    """

    def __init__(self, match_costs: Sequence[dict]):
        if not match_costs:
            raise ValueError('match_costs must name at least one cost, got none')
        self.match_costs = [TASK_UTILS.build(cost) for cost in match_costs]

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes: Tensor, gt_labels: Tensor, gt_boxes: Tensor) -> Tensor:
        """Weighted costs of all pairs, float32 or better, outside autocast.

        Args:
            logits: (..., Q, K).
            boxes: (..., Q, 4), (cx, cy, w, h) normalised by the unpadded picture.
            gt_labels: (..., G) int64, 0..K-1; leading dimensions broadcast.
            gt_boxes: (..., G, 4), as `boxes`.

        Returns:
            (..., Q, G); NaN for a ground truth whose label is not one of the K classes, so that
            it is found where costs reach the host, and not by a crash of the device.
        """
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        gt_boxes = gt_boxes.to(boxes.dtype)
        last_class = logits.shape[-1] - 1
        known = gt_labels.clamp(0, last_class)
        with torch.autocast(logits.device.type, enabled=False):
            cost = sum(cost(logits, boxes, known, gt_boxes) for cost in self.match_costs)
        return cost.masked_fill((known != gt_labels)[..., None, :], math.nan)

    def match(self, cost: np.ndarray) -> Match:
        """The cheapest one-to-one pairs.

        Args:
            cost: (Q, G), finite. Either may be the larger one, or zero.

        Returns:
            Two int64 arrays of length min(Q, G): query index, rising, and ground-truth index.

        Raises:
            ValueError: a cost is NaN or infinite.
        """
        # scipy refuses NaN, but takes infinity as "forbidden" and pairs around it.
        if not np.isfinite(cost).all():
            raise ValueError(
                f'matching needs finite costs, got {int((~np.isfinite(cost)).sum())} of '
                f'{cost.size} that are NaN or infinite'
            )
        return linear_sum_assignment(cost)

    def match_batch(
        self, costs: Sequence[Tensor], num_gts: Sequence[int]
    ) -> list[list[list[Match]]]:
        """Matches all prediction sets and pictures of a step with one transfer to the host.

        Args:
            costs: tensors (N_i, B, Q_i, G), all on one device, G = max(num_gts).
            num_gts: B numbers of ground truths; columns beyond are padding.

        Returns:
            result[i][n][b]: see `match`.

        Raises:
            ValueError: a cost is NaN or infinite; the message says of which set, layer, picture.
        """
        host = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        results, start = [], 0
        for i, cost in enumerate(costs):
            block = host[start : start + cost.numel()].reshape(cost.shape)
            start += cost.numel()
            layers = []
            for n, layer in enumerate(block):
                pictures = []
                for b, (table, num) in enumerate(zip(layer, num_gts)):
                    try:
                        pictures.append(self.match(table[:, :num]))
                    except ValueError as error:
                        place = f'prediction set {i}, layer {n}, picture {b}'
                        raise ValueError(f'{error} ({place})') from None
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
        """
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
            query, gt = (torch.from_numpy(x).to(device) for x in self.match(cost.cpu().numpy()))
            gt_inds[query] = gt + 1
            assigned_labels[query] = labels[gt]
        return AssignResult(num_gts, gt_inds, max_overlaps=None, labels=assigned_labels)
