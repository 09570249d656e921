"""The detector: the flow from pictures to losses or detections, and nothing else."""

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.structures import SampleList
from torch import Tensor

from ddetr_plugin.checkpoints import adopt
from ddetr_plugin.models.criterion import Targets
from ddetr_plugin.models.feature_levels import FeatureLevels, flatten_levels
from ddetr_plugin.models.query_head import InitialQueries
from ddetr_plugin.registry import MODELS

__all__ = ['DeformableDETR']


@MODELS.register_module()
class DeformableDETR(BaseDetector):
    """Deformable DETR (arXiv:2010.04159), every part built from its config.

    `load_state_dict` takes the names of other implementations, too; see `ddetr_plugin.checkpoints`.

    Args:
        backbone: config; pictures (B, 3, H, W) to feature maps.
        neck: config; feature maps to L maps of C channels, such as mmdet's ChannelMapper.
        positional_encoding: config; see `SinePositionalEncoding`, or any of mmdet's.
        encoder: config; see `DeformableTransformerEncoder`.
        query_head: config; see `LearnedQueryHead` and `TwoStageHead`.
        decoder: config; see `DeformableTransformerDecoder`.
        bbox_head: config; see `DeformableDETRHead`.
        criterion: config; see `SetCriterion`. None for a model that only predicts.
        data_preprocessor: config; normalises and pads.
        compile: options of torch.compile for encoder and decoder, such as `dict(dynamic=True)`;
            None runs them as they are. They compile without a graph break, and with `dynamic`
            once for all sizes of pictures. Weights keep their names.
        init_cfg: mmengine initialisation.
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
        data_preprocessor: dict | None = None,
        compile: dict | None = None,
        init_cfg=None,
    ):
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.positional_encoding = MODELS.build(positional_encoding)
        self.encoder = MODELS.build(encoder)
        self.query_head = MODELS.build(query_head)
        self.decoder = MODELS.build(decoder)
        self.bbox_head = MODELS.build(bbox_head)
        self.criterion = None if criterion is None else MODELS.build(criterion)
        if compile is not None:
            for module in (self.encoder, self.decoder):
                module.compile(fullgraph=True, **compile)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """L maps (B, C, H_l, W_l) of pictures (B, 3, H, W)."""
        # Convolutions are faster where a pixel's channels lie side by side, and the maps become
        # tokens without a copy.
        batch_inputs = batch_inputs.contiguous(memory_format=torch.channels_last)
        return tuple(self.neck(self.backbone(batch_inputs)))

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """All losses of a batch; see `SetCriterion`.

        Args:
            batch_inputs: (B, 3, H, W), normalised and padded.
            batch_data_samples: B samples with `img_shape` and `gt_instances`: `bboxes` (n, 4) as
                (x1, y1, x2, y2) in pixels of the network's input, `labels` (n,).

        Raises:
            ValueError: a label is out of range, or a number is not finite; or the model was built
                without a criterion.
        """
        if self.criterion is None:
            raise ValueError(
                'this model was built without a criterion, so it has no loss; give `criterion` in '
                'its config'
            )
        logits, boxes, queries = self.forward_batch(batch_inputs, batch_data_samples)
        return self.criterion(
            logits,
            boxes,
            Targets.from_samples(batch_data_samples),
            queries.proposal_logits,
            queries.proposal_boxes,
        )

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """The samples with `pred_instances`; see `DeformableDETRHead.predict`."""
        logits, boxes, _ = self.forward_batch(batch_inputs, batch_data_samples)
        metas = [sample.metainfo for sample in batch_data_samples]
        results = self.bbox_head.predict(logits[-1], boxes[-1], metas, rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class logits (N, B, Q, K) and boxes (N, B, Q, 4) of all layers, without more."""
        return self.forward_batch(batch_inputs, batch_data_samples)[:2]

    def forward_batch(
        self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None
    ) -> tuple[Tensor, Tensor, InitialQueries]:
        """The network.

        Args:
            batch_inputs: (B, 3, H, W), normalised and padded.
            batch_data_samples: B samples with `img_shape`; None if nothing is padded.

        Returns:
            Class logits (N, B, Q, K), boxes (N, B, Q, 4) as (cx, cy, w, h) normalised by the
            unpadded picture, and what the query head made; float32 or better.
        """
        maps = self.extract_feat(batch_inputs)
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
        return self.bbox_head.classify(hidden), boxes, queries

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Takes weights of the official release, mmdet, transformers and detrex, too."""
        adopt(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args)
