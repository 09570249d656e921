"""Ground truths of a batch, and the pairs that matching makes of them and predictions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh, get_box_tensor
from torch import Tensor, nn

__all__ = ['Match', 'Targets']

# Queries (n,) and the ground truths (n,) that they are matched with, int64, of one image.
Match = tuple[np.ndarray, np.ndarray]


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
