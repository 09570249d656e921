"""Losses of all decoder layers and of the encoder's proposals."""

from collections.abc import Sequence

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmengine.dist import all_reduce
from torch import Tensor, nn

from ddetr_plugin.models.losses.assigner import NotFiniteError
from ddetr_plugin.models.losses.prediction_sets import (
    KnownPredictions,
    LayerMatches,
    Matches,
    PredictionSet,
    first_bad,
)
from ddetr_plugin.models.losses.targets import Targets
from ddetr_plugin.registry import MODELS, TASK_UTILS

__all__ = ['IoUAwareSetCriterion', 'SetCriterion']


@MODELS.register_module()
class SetCriterion(nn.Module):
    """Matches predictions to ground truths and scores every decoder layer and the proposals.

    All layers and pictures of a step are matched with one transfer to the host, and each loss is
    computed once for all of them.

    Args:
        assigner: config of an assigner with the batched interface of `HungarianAssigner`.
        loss_cls: config of a classification loss that takes logits and one-hot targets (n, K),
            such as mmdet's FocalLoss.
        loss_bbox: config of a loss of normalised (cx, cy, w, h), such as mmdet's L1Loss.
        loss_iou: config of a loss of normalised (x1, y1, x2, y2), such as mmdet's GIoULoss.
            Its eps must be far below the area of the smallest box (1e-12 fits).
    """

    def __init__(self, assigner: dict, loss_cls: dict, loss_bbox: dict, loss_iou: dict):
        super().__init__()
        self.assigner = TASK_UTILS.build(assigner)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.loss_iou = MODELS.build(loss_iou)

    def forward(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        proposal_logits: Tensor | None = None,
        proposal_boxes: Tensor | None = None,
        known: KnownPredictions | None = None,
    ) -> dict[str, Tensor]:
        """All losses of a step.

        Args:
            logits: (N, B, Q, K) of the decoder layers, float32 or better.
            boxes: (N, B, Q, 4), (cx, cy, w, h) normalised by the unpadded picture.
            targets: the ground truths.
            proposal_logits: (B, S, K), or None. To proposals each ground truth is of class 0, an
                object.
            proposal_boxes: (B, S, 4), or None.
            known: predictions whose ground truths need no matching, or None.

        Returns:
            `loss_cls`, `loss_bbox`, `loss_iou` of the last layer, `d{i}.loss_*` of the i-th
            before it, `enc_loss_*` of the proposals, and `{name}loss_*`, `d{i}.{name}loss_*` of
            `known`. Scalars, normalised by the number of ground truths: its mean over all
            processes, at least 1.

        Raises:
            NotFiniteError: a prediction or a ground truth is NaN or infinite where matching needs
                it; the message names the first such tensor.
        """
        return self.losses_and_matches(
            logits, boxes, targets, proposal_logits, proposal_boxes, known
        )[0]

    def losses_and_matches(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        proposal_logits: Tensor | None = None,
        proposal_boxes: Tensor | None = None,
        known: KnownPredictions | None = None,
    ) -> tuple[dict[str, Tensor], Matches]:
        """What `forward` returns, and the matches of the last layer."""
        sets = self.prediction_sets(logits, boxes, targets, proposal_logits, proposal_boxes, known)
        with torch.autocast(logits.device.type, enabled=False):
            matches = self._match(sets)
            # Filled by the device: a copy of a number would wait for it.
            count = torch.full((), float(sum(targets.counts)), device=logits.device)
            all_reduce(count, op='mean')
            count = count.clamp(min=1)
            losses = {}
            for s, matched in zip(sets, matches):
                for prefix, row in zip(s.prefixes, self._set_losses(s, matched, count)):
                    for name, loss in zip(('loss_cls', 'loss_bbox', 'loss_iou'), row):
                        losses[prefix + name] = loss
        picture, query, gt = matches[0].of_last_layer().unbind()
        return losses, Matches(picture, query, gt, count)

    def prediction_sets(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        proposal_logits: Tensor | None,
        proposal_boxes: Tensor | None,
        known: KnownPredictions | None,
    ) -> list[PredictionSet]:
        """What is scored, the decoder's layers first: for criteria of other papers to extend.

        Arguments are those of `losses_and_matches`. A ground truth may occur several times in the
        `targets` of a set.
        """
        prefixes = (*(f'd{i}.' for i in range(len(logits) - 1)), '')
        sets = [PredictionSet(prefixes, logits, boxes, targets)]
        if proposal_logits is not None:
            if proposal_boxes is None:
                raise ValueError('proposal_logits come with proposal_boxes; give both or neither')
            objects = targets._replace(labels=torch.zeros_like(targets.labels))
            sets.append(
                PredictionSet(('enc_',), proposal_logits[None], proposal_boxes[None], objects)
            )
        if known is not None:
            names = tuple(prefix + known.name for prefix in prefixes)
            sets.append(PredictionSet(names, known.logits, known.boxes, targets, known.matches))
        return sets

    def _match(self, sets: Sequence[PredictionSet]) -> list[LayerMatches]:
        """The matches of each set; those that are not known are found with one transfer."""
        unknown = [s for s in sets if s.matches is None]
        costs = [
            self.assigner.cost(s.logits, s.boxes, s.targets.labels, s.targets.boxes)
            for s in unknown
        ]
        try:
            found = iter(self.assigner.match_batch(costs, [s.targets.counts for s in unknown]))
        except NotFiniteError as error:
            raise NotFiniteError(f'{error}; {first_bad(sets)}') from None
        return [
            LayerMatches.from_layers(
                next(found) if s.matches is None else [s.matches] * len(s.logits), s.logits.device
            )
            for s in sets
        ]

    def class_target(self, matched: Tensor, wanted: Tensor) -> Tensor:
        """What the score of each match is to become.

        Args:
            matched: (n, 4) boxes of the matched predictions, (cx, cy, w, h) normalised.
            wanted: (n, 4) boxes of their ground truths.

        Returns:
            (n,): 1.
        """
        return matched.new_ones(len(matched))

    def _set_losses(
        self, predictions: PredictionSet, matches: LayerMatches, count: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Classification, L1 and IoU loss of each layer."""
        logits, boxes, targets = predictions.logits, predictions.boxes, predictions.targets
        layer, picture, query, gt = matches.index

        matched, wanted = boxes[layer, picture, query], targets.boxes[picture, gt]
        class_targets = torch.zeros_like(logits)
        positive = layer, picture, query, targets.labels[picture, gt]
        class_targets[positive] = self.class_target(matched, wanted).to(logits.dtype)
        loss_cls = self.loss_cls(
            logits.flatten(0, -2), class_targets.flatten(0, -2), reduction_override='none'
        )

        if len(matched):
            loss_bbox = self.loss_bbox(matched, wanted, reduction_override='none')
            loss_iou = self.loss_iou(
                bbox_cxcywh_to_xyxy(matched), bbox_cxcywh_to_xyxy(wanted), reduction_override='none'
            )
        else:
            # Zero, but still a function of the boxes: distributed training wants every gradient.
            loss_bbox = loss_iou = (boxes * 0).flatten(0, -2)
        counts = matches.counts if len(matched) else [boxes[0, ..., 0].numel()] * len(boxes)
        sums = (
            loss_cls.reshape(len(logits), -1).sum(1),
            _sums_by_layer(loss_bbox, counts),
            _sums_by_layer(loss_iou, counts),
        )
        return list(zip(*((total / count).unbind() for total in sums)))


@MODELS.register_module()
class IoUAwareSetCriterion(SetCriterion):
    """Trains the score of a match towards the IoU of its box, so that scores rank boxes.

    Not in the paper; see VarifocalNet (arXiv:2008.13367) and RT-DETR (arXiv:2304.08069). It is
    meant for a classification loss that takes soft targets, such as mmdet's VarifocalLoss.
    Arguments are those of `SetCriterion`.
    """

    @torch.no_grad()
    def class_target(self, matched: Tensor, wanted: Tensor) -> Tensor:
        """(n,) IoU of matched (n, 4) and wanted (n, 4) boxes, (cx, cy, w, h) normalised."""
        matched, wanted = bbox_cxcywh_to_xyxy(matched), bbox_cxcywh_to_xyxy(wanted)
        return bbox_overlaps(matched, wanted, is_aligned=True, eps=1e-12)


def _sums_by_layer(losses: Tensor, counts: Sequence[int]) -> Tensor:
    """(N,): the sums of the first `counts[0]` rows, of the next `counts[1]`, ..."""
    return torch.stack([part.sum() for part in losses.split(tuple(counts))])
