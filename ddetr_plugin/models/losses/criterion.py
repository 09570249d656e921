"""Losses of all decoder layers and of the encoder's proposals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures import SampleList
from mmdet.structures.bbox import (
    bbox_cxcywh_to_xyxy,
    bbox_overlaps,
    bbox_xyxy_to_cxcywh,
    get_box_tensor,
)
from mmengine.dist import all_reduce
from torch import Tensor, nn

from ddetr_plugin.models.losses.assigner import Match, NotFiniteError
from ddetr_plugin.registry import MODELS, TASK_UTILS

__all__ = ['IoUAwareSetCriterion', 'Matches', 'SetCriterion', 'Targets']


class Targets(NamedTuple):
    """Ground truths of a batch, padded to G = the largest number of one picture (at least 1).

    Attributes:
        labels: (B, G) int64; 0 in the padding.
        boxes: (B, G, 4), (cx, cy, w, h) normalised by the unpadded picture; 0.5 in the padding.
        counts: B ints.
    """

    labels: Tensor
    boxes: Tensor
    counts: Sequence[int]

    @classmethod
    def pad(cls, labels: Sequence[Tensor], boxes: Sequence[Tensor]) -> 'Targets':
        """Pads B tensors (n_b,) and (n_b, 4)."""
        pad = nn.utils.rnn.pad_sequence
        padded_labels = pad(list(labels), batch_first=True)
        padded_boxes = pad(list(boxes), batch_first=True, padding_value=0.5)
        if padded_labels.shape[1] == 0:
            padded_labels = padded_labels.new_zeros(len(labels), 1)
            padded_boxes = padded_boxes.new_full((len(labels), 1, 4), 0.5)
        return cls(padded_labels, padded_boxes, [len(x) for x in labels])

    @classmethod
    def from_samples(cls, batch_data_samples: SampleList) -> 'Targets':
        """The ground truths of B samples with `img_shape` (h, w) and `gt_instances`.

        `bboxes` (n, 4) are (x1, y1, x2, y2) in pixels of the network's input, `labels` (n,).
        """
        labels: list[Tensor] = []
        boxes: list[Tensor] = []
        for sample in batch_data_samples:
            height, width = sample.img_shape[:2]
            pixels = get_box_tensor(sample.gt_instances.bboxes)
            # Not a tensor of the size: its copy to a GPU would make the host wait.
            x, y = pixels[:, 0::2] / width, pixels[:, 1::2] / height
            boxes.append(bbox_xyxy_to_cxcywh(torch.stack((x, y), dim=-1).flatten(1)))
            labels.append(sample.gt_instances.labels)
        return cls.pad(labels, boxes)


class Matches(NamedTuple):
    """The n matches of the last decoder layer, for losses that come after.

    Attributes:
        picture: (n,) int64, 0..B-1.
        query: (n,) int64, 0..Q-1.
        gt: (n,) int64, index of the ground truth in its picture.
        count: scalar by which losses are divided: the number of ground truths, its mean over
            all processes, at least 1.
    """

    picture: Tensor
    query: Tensor
    gt: Tensor
    count: Tensor


class PredictionSet(NamedTuple):
    """Layers whose predictions are scored alike.

    Attributes:
        prefixes: N prefixes of the loss names.
        logits: (N, B, Q, K).
        boxes: (N, B, Q, 4), (cx, cy, w, h) normalised by the unpadded picture.
        targets: what they are matched with.
    """

    prefixes: tuple[str, ...]
    logits: Tensor
    boxes: Tensor
    targets: Targets


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
    ) -> dict[str, Tensor]:
        """All losses of a step.

        Args:
            logits: (N, B, Q, K) of the decoder layers, float32 or better.
            boxes: (N, B, Q, 4), (cx, cy, w, h) normalised by the unpadded picture.
            targets: the ground truths.
            proposal_logits: (B, S, K), or None. To proposals each ground truth is of class 0, an
                object.
            proposal_boxes: (B, S, 4), or None.

        Returns:
            `loss_cls`, `loss_bbox`, `loss_iou` of the last layer, `d{i}.loss_*` of the i-th
            before it, `enc_loss_*` of the proposals. Scalars, normalised by the
            number of ground truths: its mean over all processes, at least 1.

        Raises:
            NotFiniteError: a prediction or a ground truth is NaN or infinite where matching needs
                it; the message names the first such tensor.
        """
        return self.losses_and_matches(logits, boxes, targets, proposal_logits, proposal_boxes)[0]

    def losses_and_matches(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Targets,
        proposal_logits: Tensor | None = None,
        proposal_boxes: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Matches]:
        """What `forward` returns, and the matches of the last layer."""
        prefixes = (*(f'd{i}.' for i in range(len(logits) - 1)), '')
        sets = [PredictionSet(prefixes, logits, boxes, targets)]
        if proposal_logits is not None:
            wanted = targets._replace(labels=torch.zeros_like(targets.labels))
            sets.append(
                PredictionSet(('enc_',), proposal_logits[None], proposal_boxes[None], wanted)
            )

        with torch.autocast(logits.device.type, enabled=False):
            costs = [
                self.assigner.cost(s.logits, s.boxes, s.targets.labels, s.targets.boxes)
                for s in sets
            ]
            try:
                matches = self.assigner.match_batch(costs, targets.counts)
            except NotFiniteError as error:
                raise NotFiniteError(f'{error}; {_first_bad(sets)}') from None
            # Filled by the device: a copy of a number would wait for it.
            count = torch.full((), float(sum(targets.counts)), device=logits.device)
            all_reduce(count, op='mean')
            count = count.clamp(min=1)
            indices = [_flat_indices(x).to(logits.device, non_blocking=True) for x in matches]
            losses = {}
            for s, index in zip(sets, indices):
                for prefix, row in zip(s.prefixes, self._set_losses(s, index, count)):
                    for name, loss in zip(('loss_cls', 'loss_bbox', 'loss_iou'), row):
                        losses[prefix + name] = loss
        # Every layer has the same number of matches, and the last layer comes last.
        first = indices[0].shape[1] // len(logits) * (len(logits) - 1)
        return losses, Matches(*indices[0][1:, first:], count)

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
        self, predictions: PredictionSet, index: Tensor, count: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Classification, L1 and IoU loss of each layer; `index` as `_flat_indices` makes it."""
        _, logits, boxes, targets = predictions
        num_layers = len(logits)
        layer, picture, query, gt = index

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
            loss_bbox = loss_iou = boxes.flatten(1) * 0
        # Every layer has the same number of matches, in order: a layer is a row.
        losses = (loss.reshape(num_layers, -1) for loss in (loss_cls, loss_bbox, loss_iou))
        return list(zip(*((loss.sum(1) / count).unbind() for loss in losses)))


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


def _flat_indices(matches: list[list[Match]]) -> Tensor:
    """(4, n) int64 on the host: layer, picture, query and ground truth of every match."""
    columns = [
        np.stack([np.full_like(query, layer), np.full_like(query, picture), query, gt])
        for layer, pictures in enumerate(matches)
        for picture, (query, gt) in enumerate(pictures)
    ]
    return torch.from_numpy(np.concatenate(columns, axis=1))


def _first_bad(sets: Sequence[PredictionSet]) -> str:
    """Names the first tensor that is not as it must be, in the order in which they arise."""
    targets, num_classes = sets[0].targets, sets[0].logits.shape[-1]
    known = (targets.labels >= 0) & (targets.labels < num_classes)
    tensors = [
        (f'ground-truth labels (must be 0..{num_classes - 1})', known.float().log()),
        ('ground-truth boxes', targets.boxes),
    ]
    # Proposals come before the decoder.
    for s in sorted(sets, key=lambda s: s.prefixes != ('enc_',)):
        for prefix, logits, boxes in zip(s.prefixes, s.logits, s.boxes):
            place = _PLACES.get(prefix, f'decoder layer {prefix[1:-1]}')
            tensors += [(f'class logits of {place}', logits), (f'boxes of {place}', boxes)]
    for name, tensor in tensors:
        bad = ~tensor.isfinite().flatten(1).all(1)
        if bad.any():
            return f'the first bad tensor: {name}, picture {int(bad.nonzero()[0])} of the batch'
    return 'predictions and ground truths are finite, so a match cost itself overflows'


_PLACES = {'enc_': 'the encoder proposals', '': 'the last decoder layer'}
