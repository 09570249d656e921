"""Class and box branches of the decoder, and the step from predictions to detections."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.model import BaseModule, ModuleList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ddetr_plugin.models.boxes import at_least_float32, inverse_sigmoid, regress_boxes
from ddetr_plugin.models.layers.token_linear import TokenLinear
from ddetr_plugin.registry import MODELS

__all__ = [
    'BestPairs',
    'DeformableDETRHead',
    'best_detections',
    'best_pairs',
    'build_box_branch',
    'prior_bias',
]


class BestPairs(NamedTuple):
    """The n best pairs of query and class of B images, best first.

    Attributes:
        scores: (B, n).
        labels: (B, n) int64, 0..K-1.
        boxes: (B, n, 4), (x1, y1, x2, y2) normalised by the unpadded image, not clipped.
        queries: (B, n) int64, 0..Q-1.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    queries: Tensor


def build_box_branch(embed_dims: int) -> nn.Sequential:
    """Two hidden layers and four outputs: the official 3-layer perceptron."""
    return nn.Sequential(
        TokenLinear(embed_dims, embed_dims),
        nn.ReLU(),
        TokenLinear(embed_dims, embed_dims),
        nn.ReLU(),
        TokenLinear(embed_dims, 4),
    )


def prior_bias(probability: float) -> float:
    """Logit of the probability that a focal loss should start from (arXiv:1708.02002, 3.3)."""
    return -math.log((1 - probability) / probability)


@MODELS.register_module()
class DeformableDETRHead(BaseModule):
    """Classifies queries, regresses their boxes relative to references, picks the detections.

    Args:
        num_classes: K.
        embed_dims: C.
        num_layers: N, layers of the decoder.
        share_branches: one pair of branches for all layers (the base model), or a pair per
            layer (needed where a layer refines the box of the previous one).
        initial_size_logit: bias of width and height in the first box branch. -2 starts with
            boxes of 12 % of the picture where references have no size; 0 where they have one.
        prior_prob: initial probability of every class.
        max_per_img: detections kept per picture, over all pairs of query and class.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: a number is not positive, or `prior_prob` is not between 0 and 1.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        num_layers: int,
        share_branches: bool = True,
        initial_size_logit: float = -2.0,
        prior_prob: float = 0.01,
        max_per_img: int = 100,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if min(num_classes, embed_dims, num_layers, max_per_img) < 1 or not 0 < prior_prob < 1:
            raise ValueError(
                'num_classes, embed_dims, num_layers and max_per_img must be positive and '
                f'prior_prob between 0 and 1, got {num_classes}, {embed_dims}, {num_layers}, '
                f'{max_per_img} and {prior_prob}'
            )
        self.num_classes = num_classes
        self.num_layers = num_layers
        self.share_branches = share_branches
        self.initial_size_logit = initial_size_logit
        self.prior_prob = prior_prob
        self.max_per_img = max_per_img
        count = 1 if share_branches else num_layers
        self.cls_branches = ModuleList(nn.Linear(embed_dims, num_classes) for _ in range(count))
        self.reg_branches = ModuleList(build_box_branch(embed_dims) for _ in range(count))

    def init_weights(self) -> None:
        """Rare classes, and boxes that start at their reference."""
        super().init_weights()
        for classifier in self.cls_branches:
            nn.init.constant_(classifier.bias, prior_bias(self.prior_prob))
        for branch in self.reg_branches:
            nn.init.zeros_(branch[-1].weight)
            nn.init.zeros_(branch[-1].bias)
        nn.init.constant_(self.reg_branches[0][-1].bias[2:], self.initial_size_logit)

    def regress(self, layer: int, hidden: Tensor, reference: Tensor) -> Tensor:
        """Boxes after one decoder layer (paper A.3, A.4).

        Args:
            layer: 0..N-1.
            hidden: (B, Q, C).
            reference: (B, Q, 2) or (B, Q, 4), the reference that this layer attended around,
                normalised by the unpadded picture.

        Returns:
            (B, Q, 4), (cx, cy, w, h) normalised by the unpadded picture, float32 or better.

        Raises:
            ValueError: there is no branch for this layer.
        """
        if not 0 <= layer < self.num_layers:
            raise ValueError(
                f'the head has branches for num_layers={self.num_layers}, but the decoder asks '
                f'for layer {layer}; set num_layers of decoder and bbox_head to the same number'
            )
        branch = self.reg_branches[0 if self.share_branches else layer]
        return regress_boxes(branch, hidden, inverse_sigmoid(at_least_float32(reference)))

    def classify(self, hidden: Tensor) -> Tensor:
        """Class logits (N, B, Q, K), float32 or better, of hidden states (N, B, Q, C)."""
        if len(hidden) != self.num_layers:
            raise ValueError(
                f'hidden must have num_layers={self.num_layers} layers, got {len(hidden)}; set '
                'num_layers of decoder and bbox_head to the same number'
            )
        if self.share_branches:
            return at_least_float32(self.cls_branches[0](hidden))
        logits = [classifier(x) for classifier, x in zip(self.cls_branches, hidden)]
        return at_least_float32(torch.stack(logits))

    def predict(
        self, logits: Tensor, boxes: Tensor, img_metas: Sequence[dict], rescale: bool = True
    ) -> list[InstanceData]:
        """The `max_per_img` best pairs of query and class; see `best_detections`."""
        return best_detections(logits, boxes, img_metas, self.max_per_img, rescale)


def best_pairs(logits: Tensor, boxes: Tensor, max_per_img: int) -> BestPairs:
    """The best pairs of query and class of each image.

    Args:
        logits: (B, Q, K) of the last layer.
        boxes: (B, Q, 4), (cx, cy, w, h) normalised by the unpadded image.
        max_per_img: pairs kept per image; n = min(max_per_img, Q * K).
    """
    num_classes = logits.shape[-1]
    count = min(max_per_img, logits.shape[1] * num_classes)
    scores, index = logits.sigmoid().flatten(1).topk(count, dim=1)
    query = index // num_classes
    boxes = bbox_cxcywh_to_xyxy(boxes.gather(1, query[..., None].expand(-1, -1, 4)))
    return BestPairs(scores, index % num_classes, boxes, query)


def best_detections(
    logits: Tensor,
    boxes: Tensor,
    img_metas: Sequence[dict],
    max_per_img: int,
    rescale: bool = True,
) -> list[InstanceData]:
    """The best pairs of query and class of each picture.

    Args:
        logits: (B, Q, K) of the last layer.
        boxes: (B, Q, 4), (cx, cy, w, h) normalised by the unpadded picture.
        img_metas: of each picture, with `img_shape` (h, w) in pixels and, if the picture was
            resized, `scale_factor` (w, h).
        max_per_img: pairs kept per picture.
        rescale: boxes in pixels of the original picture instead of the network's input.

    Returns:
        One InstanceData per picture: `bboxes` (n, 4) as (x1, y1, x2, y2) in pixels, not
        clipped to the picture, as in the official release; `scores` (n,), falling; `labels`
        (n,) int64; `queries` (n,) int64, 0..Q-1; n = min(max_per_img, Q * K).
    """
    scores, labels, boxes, query = best_pairs(logits, boxes, max_per_img)
    results = []
    for i, meta in enumerate(img_metas):
        height, width = meta['img_shape'][:2]
        scale_x, scale_y = meta.get('scale_factor', (1.0, 1.0))[:2] if rescale else (1.0, 1.0)
        x, y = width / scale_x, height / scale_y
        pixels = torch.stack([boxes[i, :, k] * (x, y)[k % 2] for k in range(4)], dim=-1)
        results.append(
            InstanceData(bboxes=pixels, scores=scores[i], labels=labels[i], queries=query[i])
        )
    return results
