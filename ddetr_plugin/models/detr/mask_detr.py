"""mmdet's DETR with a mask head, and a box head that says which query is what."""

import copy

import torch
from mmdet.models.dense_heads import DETRHead
from mmdet.models.detectors.detr import DETR
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.dist import all_reduce
from mmengine.structures import InstanceData
from torch import Tensor

from ddetr_plugin.models.boxes import at_least_float32
from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.freezing import FreezableDetector
from ddetr_plugin.models.heads.task_head import HeadInputs
from ddetr_plugin.models.losses.prediction_sets import Matches
from ddetr_plugin.registry import MODELS

__all__ = ['MaskDETR', 'MaskDETRHead']


@MODELS.register_module()
class MaskDETRHead(DETRHead):
    """mmdet's DETRHead, which also names queries: those of detections, and those of matches.

    The arguments are those of DETRHead, with a softmax over the classes, as in DETR.

    Args:
        num_classes: K.
        loss_cls: config of a loss of logits over K + 1 classes; its `class_weight` is that of
            objects, `bg_cls_weight` that of "no object".
        **others: the other arguments of DETRHead.
    """

    def __init__(self, num_classes: int, loss_cls: dict, **others):
        # mmdet does this in DETRHead itself and in no class derived from it.
        loss_cls = dict(loss_cls)
        weight = loss_cls.pop('class_weight', 1.0)
        background = loss_cls.pop('bg_cls_weight', weight)
        loss_cls['class_weight'] = [weight] * num_classes + [background]
        super().__init__(num_classes=num_classes, loss_cls=loss_cls, **others)
        self.bg_cls_weight = background

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """As DETRHead's, but outside autocast: boxes of 16 bits would be off by pixels.

        Args:
            hidden_states: (N, B, Q, C).

        Returns:
            Class logits (N, B, Q, K + 1), and boxes (N, B, Q, 4) as (cx, cy, w, h) normalised by
            the unpadded picture; float32 or better, and so are costs and losses.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            logits, boxes = super().forward(hidden_states.to(self.fc_cls.weight.dtype))
        return at_least_float32(logits), at_least_float32(boxes)

    @torch.no_grad()
    def matches(self, hidden_states: Tensor, batch_data_samples: SampleList) -> Matches:
        """The matches of the last layer, those that `loss` makes.

        Args:
            hidden_states: (N, B, Q, C).
            batch_data_samples: B samples with `img_shape` and `gt_instances`.
        """
        logits, boxes = self(hidden_states[-1:])
        rows = []
        for i, sample in enumerate(batch_data_samples):
            height, width = sample.img_shape[:2]
            pixels = bbox_cxcywh_to_xyxy(boxes[0, i]) * boxes.new_tensor([width, height] * 2)
            assigned = self.assigner.assign(
                pred_instances=InstanceData(scores=logits[0, i], bboxes=pixels),
                gt_instances=sample.gt_instances,
                img_meta=sample.metainfo,
            )
            (query,) = torch.where(assigned.gt_inds > 0)
            gt = assigned.gt_inds[query] - 1
            rows.append(torch.stack((torch.full_like(query, i), query, gt)))
        index = torch.cat(rows, dim=1)
        count = logits.new_full((), float(index.shape[1]), dtype=torch.float32)
        all_reduce(count, op='mean')
        picture, query, gt = index.unbind()
        return Matches(picture, query, gt, count.clamp(min=1))

    def _predict_by_feat_single(
        self, cls_score: Tensor, bbox_pred: Tensor, img_meta: dict, rescale: bool = True
    ) -> InstanceData:
        """As DETRHead's, with `queries` (n,) int64 of the detections."""
        found = super()._predict_by_feat_single(cls_score, bbox_pred, img_meta, rescale)
        # As there: the best class of each query, "no object" left out.
        best = cls_score.softmax(-1)[..., :-1].max(-1).values
        found.queries = best.topk(len(found)).indices
        return found


@MODELS.register_module()
class MaskDETR(FreezableDetector, DETR):
    """mmdet's DETR with a mask head (arXiv:2005.12872, 4.4).

    Args:
        mask_head: config; see `MaskHead`, with `level=0`: DETR has one level. The neck reads the
            backbone's maps without the head's `extra_maps` finest.
        bbox_head: config of a `MaskDETRHead`.
        freeze_detector: train the mask head alone; see `DeformableDETR`.
        **detr: the other arguments of mmdet's DETR.

    Raises:
        ValueError: `bbox_head` does not say which query is what.
    """

    def __init__(self, mask_head: dict, bbox_head: dict, freeze_detector: bool = False, **detr):
        # mmdet writes into what it is given.
        super().__init__(**copy.deepcopy(dict(detr, bbox_head=bbox_head)))
        if not isinstance(self.bbox_head, MaskDETRHead) or self.bbox_head.loss_cls.use_sigmoid:
            raise ValueError(
                "bbox_head must be of type 'ddetr_plugin.MaskDETRHead', which names queries, with "
                f'loss_cls.use_sigmoid=False; got {type(self.bbox_head).__name__}'
            )
        self.mask_head = MODELS.build(mask_head)
        self.task_heads = ('mask_head',)
        if freeze_detector:
            self.freeze()
        self.freeze_stages()

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """The neck's map (B, C, H, W) of pictures (B, 3, H, W), in a tuple."""
        return self.extract_maps(batch_inputs)[1]

    def extract_maps(self, batch_inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The maps of the backbone, and that of the neck, of pictures (B, 3, H, W)."""
        maps = tuple(self.backbone(batch_inputs))
        return maps, tuple(self.neck(maps[self.mask_head.extra_maps :]))

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of DETR and `loss_mask`, `loss_dice`; see `MaskHead.loss`.

        Args:
            batch_inputs: (B, 3, H, W), normalised and padded.
            batch_data_samples: B samples with `img_shape` and `gt_instances`: `bboxes` (n, 4) as
                (x1, y1, x2, y2) in pixels, `labels` (n,) and `masks`.
        """
        hidden, head_inputs = self.forward_batch(batch_inputs, batch_data_samples)
        losses = self.bbox_head.loss(hidden, batch_data_samples)
        matches = self.bbox_head.matches(hidden, batch_data_samples)
        gt_instances = [sample.gt_instances for sample in batch_data_samples]
        return {**losses, **self.mask_head.loss(head_inputs, matches, gt_instances)}

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """The samples with `pred_instances`, which have `masks` (n, h, w) bool."""
        hidden, head_inputs = self.forward_batch(batch_inputs, batch_data_samples)
        results = self.bbox_head.predict(hidden, batch_data_samples, rescale)
        samples = self.add_pred_to_datasample(batch_data_samples, results)
        self.mask_head.predict(head_inputs, samples, rescale)
        return samples

    def forward_batch(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[Tensor, HeadInputs]:
        """Hidden states (N, B, Q, C) of the decoder layers, and what the mask head reads."""
        backbone_maps, maps = self.extract_maps(batch_inputs)
        # mmdet's `forward_transformer`, which keeps the memory to itself.
        encoder_inputs, decoder_inputs = self.pre_transformer(maps, batch_data_samples)
        memory = self.forward_encoder(**encoder_inputs)['memory']
        decoder_inputs.update(self.pre_decoder(memory)[0])
        hidden = self.forward_decoder(**decoder_inputs)['hidden_states']
        batch_shape = batch_inputs.shape[-2], batch_inputs.shape[-1]
        levels = FeatureLevels.from_images(
            [maps[0].shape[-2:]],
            batch_shape,
            [sample.img_shape[:2] for sample in batch_data_samples],
            batch_inputs.device,
        )
        return hidden, HeadInputs(hidden[-1], memory, levels, maps, backbone_maps, batch_shape)
