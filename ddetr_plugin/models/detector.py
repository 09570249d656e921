"""The detector: the flow from pictures to losses or detections, and nothing else."""

import logging
from typing import NamedTuple

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures import SampleList
from mmengine.logging import print_log
from torch import Tensor

from ddetr_plugin.checkpoints import adopt
from ddetr_plugin.config_levels import with_num_levels
from ddetr_plugin.models.criterion import Targets
from ddetr_plugin.models.feature_levels import FeatureLevels, flatten_levels
from ddetr_plugin.models.freezing import FreezableDetector
from ddetr_plugin.models.mask_head import MaskInputs
from ddetr_plugin.models.query_head import InitialQueries
from ddetr_plugin.registry import MODELS

__all__ = ['DeformableDETR', 'Outputs']


class Outputs(NamedTuple):
    """What the network makes of B pictures.

    Attributes:
        logits: (N, B, Q, K) class logits of all decoder layers, float32 or better.
        boxes: (N, B, Q, 4), (cx, cy, w, h) normalised by the unpadded picture, float32 or better.
        queries: what the query head made.
        mask_inputs: what the mask head reads; None if the model has none.
    """

    logits: Tensor
    boxes: Tensor
    queries: InitialQueries
    mask_inputs: MaskInputs | None


@MODELS.register_module()
class DeformableDETR(FreezableDetector, BaseDetector):
    """Deformable DETR (arXiv:2010.04159), every part built from its config.

    `load_state_dict` takes the names of other implementations, too; see `ddetr_plugin.checkpoints`.

    Args:
        backbone: config; pictures (B, 3, H, W) to feature maps.
        neck: config; feature maps to L maps of C channels, such as mmdet's ChannelMapper. Parts of
            encoder and decoder that take `num_levels` and do not state it get its `num_outs`.
        positional_encoding: config; see `SinePositionalEncoding`, or any of mmdet's.
        encoder: config; see `DeformableTransformerEncoder`.
        query_head: config; see `LearnedQueryHead` and `TwoStageHead`.
        decoder: config; see `DeformableTransformerDecoder`.
        bbox_head: config; see `DeformableDETRHead`.
        criterion: config; see `SetCriterion`. None for a model that only predicts.
        mask_head: config; see `MaskHead`. The neck then reads the backbone's coarser maps, without
            the head's `extra_maps` finest. None for a model without masks.
        freeze_detector: train the mask head alone. The rest gets no gradients and runs as in
            evaluation, without dropout.
        data_preprocessor: config; normalises and pads.
        compile: options of torch.compile for encoder and decoder, such as `dict(dynamic=True)`;
            None runs them as they are. They compile without a graph break, and with `dynamic`
            once for all sizes of pictures, once more where nothing is padded, for one picture,
            and for predictions. Weights keep their names.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: `freeze_detector` without a mask head leaves nothing to train.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        positional_encoding: dict,
        encoder: dict,
        query_head: dict,
        decoder: dict,
        bbox_head: dict,
        criterion: dict | None = None,
        mask_head: dict | None = None,
        freeze_detector: bool = False,
        data_preprocessor: dict | None = None,
        compile: dict | None = None,
        init_cfg=None,
    ):
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.positional_encoding = MODELS.build(positional_encoding)
        parts = with_num_levels(dict(neck=neck, encoder=encoder, decoder=decoder))
        self.encoder = MODELS.build(parts['encoder'])
        self.query_head = MODELS.build(query_head)
        self.decoder = MODELS.build(parts['decoder'])
        self.bbox_head = MODELS.build(bbox_head)
        self.criterion = None if criterion is None else MODELS.build(criterion)
        self.mask_head = None if mask_head is None else MODELS.build(mask_head)
        if freeze_detector:
            self.freeze()
        self.freeze_stages()
        if compile is not None:
            for module in (self.encoder, self.decoder):
                module.compile(fullgraph=True, **compile)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """L maps (B, C, H_l, W_l) of pictures (B, 3, H, W)."""
        return self.extract_maps(batch_inputs)[1]

    def extract_maps(self, batch_inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The maps of the backbone, and those of the neck, of pictures (B, 3, H, W)."""
        # Convolutions are faster where a pixel's channels lie side by side, and the maps become
        # tokens without a copy.
        batch_inputs = batch_inputs.contiguous(memory_format=torch.channels_last)
        maps = tuple(self.backbone(batch_inputs))
        extra = 0 if self.mask_head is None else self.mask_head.extra_maps
        return maps, tuple(self.neck(maps[extra:]))

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """All losses of a batch; see `SetCriterion` and `MaskHead.loss`.

        Args:
            batch_inputs: (B, 3, H, W), normalised and padded.
            batch_data_samples: B samples with `img_shape` and `gt_instances`: `bboxes` (n, 4) as
                (x1, y1, x2, y2) in pixels of the network's input, `labels` (n,), and, if there is
                a mask head, `masks`.

        Raises:
            ValueError: a label is out of range, or a number is not finite; or the model was built
                without a criterion.
        """
        if self.criterion is None:
            raise ValueError(
                'this model was built without a criterion, so it has no loss; give `criterion` in '
                'its config'
            )
        logits, boxes, queries, mask_inputs = self.forward_batch(batch_inputs, batch_data_samples)
        predictions = (
            logits,
            boxes,
            Targets.from_samples(batch_data_samples),
            queries.proposal_logits,
            queries.proposal_boxes,
        )
        if self.mask_head is None:
            return self.criterion(*predictions)
        losses, matches = self.criterion.losses_and_matches(*predictions)
        gt_instances = [sample.gt_instances for sample in batch_data_samples]
        return {**losses, **self.mask_head.loss(mask_inputs, matches, gt_instances)}

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """The samples with `pred_instances`; see `DeformableDETRHead.predict`.

        With a mask head they have `masks` (n, h, w) bool, too; see `MaskHead.predict`.
        """
        logits, boxes, _, mask_inputs = self.forward_batch(batch_inputs, batch_data_samples)
        metas = [sample.metainfo for sample in batch_data_samples]
        results = self.bbox_head.predict(logits[-1], boxes[-1], metas, rescale)
        samples = self.add_pred_to_datasample(batch_data_samples, results)
        if self.mask_head is not None:
            self.mask_head.predict(mask_inputs, samples, rescale)
        return samples

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class logits (N, B, Q, K) and boxes (N, B, Q, 4) of all layers, without more."""
        return self.forward_batch(batch_inputs, batch_data_samples)[:2]

    def forward_batch(
        self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None
    ) -> Outputs:
        """The network.

        Args:
            batch_inputs: (B, 3, H, W), normalised and padded.
            batch_data_samples: B samples with `img_shape`; None if nothing is padded.
        """
        backbone_maps, maps = self.extract_maps(batch_inputs)
        batch_shape = tuple(batch_inputs.shape[-2:])
        if batch_data_samples is None:
            image_shapes = [batch_shape] * len(batch_inputs)
        else:
            image_shapes = [sample.img_shape[:2] for sample in batch_data_samples]
        levels = FeatureLevels.from_images(
            [m.shape[-2:] for m in maps], batch_shape, image_shapes, batch_inputs.device
        )
        pos = [self.positional_encoding(mask, m) for mask, m in zip(levels.level_masks(), maps)]
        memory = self.encoder(flatten_levels(maps), flatten_levels(pos), levels)
        queries = self.query_head(memory, levels)
        hidden, boxes = self.decoder(
            queries.query,
            queries.query_pos,
            queries.reference,
            memory,
            levels,
            self.bbox_head.regress,
        )
        mask_inputs = None
        if self.mask_head is not None:
            mask_inputs = MaskInputs(hidden[-1], memory, levels, maps, backbone_maps, batch_shape)
        return Outputs(self.bbox_head.classify(hidden), boxes, queries, mask_inputs)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Takes weights of the official release, mmdet, transformers and detrex, too."""
        adopt(state_dict, prefix, self)
        mask_head = f'{prefix}mask_head.'
        if self.mask_head is not None and not any(k.startswith(mask_head) for k in state_dict):
            print_log(
                'The checkpoint has no mask head: the one of this model keeps the weights that it '
                'has, and without training its masks mean nothing.',
                logger='current',
                level=logging.WARNING,
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
