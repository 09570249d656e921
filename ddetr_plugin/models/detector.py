"""The detector: the flow from pictures to losses or detections, and nothing else."""

import logging
from typing import Any, NamedTuple

import torch
from mmdet.structures import SampleList
from mmengine.logging import print_log
from torch import Tensor

from ddetr_plugin.checkpoints import adopt
from ddetr_plugin.config_levels import with_num_levels
from ddetr_plugin.models.feature_levels import FeatureLevels, flatten_levels
from ddetr_plugin.models.freezing import FreezableDetector
from ddetr_plugin.models.heads.bbox_head import best_pairs
from ddetr_plugin.models.heads.query_head import InitialQueries
from ddetr_plugin.models.heads.task_head import HeadInputs, TaskHead
from ddetr_plugin.models.losses.prediction_sets import KnownPredictions
from ddetr_plugin.models.losses.targets import Targets
from ddetr_plugin.registry import MODELS

__all__ = ['DeformableDETR', 'Outputs']


class Outputs(NamedTuple):
    """What the network makes of B pictures.

    Attributes:
        logits: (N, B, Q, K) class logits of all decoder layers, float32 or better.
        boxes: (N, B, Q, 4), (cx, cy, w, h) normalised by the unpadded picture, float32 or better.
        queries: what the query head made.
        head_inputs: what task heads read; None if the model has none.
    """

    logits: Tensor
    boxes: Tensor
    queries: InitialQueries
    head_inputs: HeadInputs | None

    def without_known(self) -> tuple['Outputs', KnownPredictions | None]:
        """The outputs of the queries that are to be matched, and the others'."""
        if self.queries.known is None:
            return self, None
        name, count, matches = self.queries.known
        logits, boxes, inputs = self.logits, self.boxes, self.head_inputs
        known = KnownPredictions(name, logits[:, :, :count], boxes[:, :, :count], matches)
        if inputs is not None:
            inputs = inputs._replace(hidden=inputs.hidden[:, count:])
        outputs = self._replace(
            logits=logits[:, :, count:], boxes=boxes[:, :, count:], head_inputs=inputs
        )
        return outputs, known


@MODELS.register_module()
class DeformableDETR(FreezableDetector):
    """Deformable DETR (arXiv:2010.04159), every part built from its config.

    `load_state_dict` takes the names of other implementations, too; see `ddetr_plugin.checkpoints`.

    Args:
        backbone: config; pictures (B, 3, H, W) to feature maps.
        neck: config; feature maps to L maps of C channels, such as mmdet's ChannelMapper. Parts of
            encoder and decoder that take `num_levels` and do not state it get its `num_outs`.
        positional_encoding: config; see `SinePositionalEncoding`, or any of mmdet's. None without
            an encoder, which alone reads it.
        encoder: config; see `DeformableTransformerEncoder`. None where the neck encodes: its maps
            are then what the decoder reads.
        query_head: config; see `LearnedQueryHead` and `TwoStageHead`.
        decoder: config; see `DeformableTransformerDecoder`.
        bbox_head: config; see `DeformableDETRHead`.
        criterion: config; see `SetCriterion`. None for a model that only predicts.
        mask_head: config; see `MaskHead`. None for a model without masks.
        task_heads: configs of heads for further tasks, by the names that their weights begin with;
            see `TaskHead`. The neck reads the backbone's coarser maps, without the `extra_maps`
            finest that a task head, the mask head included, asks for.
        freeze_detector: train the task heads alone. The rest gets no gradients and runs as in
            evaluation, without dropout.
        data_preprocessor: config; normalises and pads.
        compile: options of torch.compile for encoder and decoder, such as `dict(dynamic=True)`;
            None runs them as they are. They compile without a graph break, and with `dynamic`
            once for all sizes of pictures, once more where nothing is padded, for one picture,
            and for predictions. Weights keep their names.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: `freeze_detector` without a task head leaves nothing to train; an encoder has no
            positional encoding; the name of a task head is that of another part.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        positional_encoding: dict | None,
        encoder: dict | None,
        query_head: dict,
        decoder: dict,
        bbox_head: dict,
        criterion: dict | None = None,
        mask_head: dict | None = None,
        task_heads: dict[str, dict] | None = None,
        freeze_detector: bool = False,
        data_preprocessor: dict | None = None,
        compile: dict | None = None,
        init_cfg=None,
    ):
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        if encoder is not None and positional_encoding is None:
            raise ValueError(
                'an encoder needs a positional encoding; give `positional_encoding`, such as '
                "dict(type='ddetr_plugin.SinePositionalEncoding', ...), or encoder=None"
            )
        self.positional_encoding = _build(positional_encoding)
        parts = with_num_levels(dict(neck=neck, encoder=encoder, decoder=decoder))
        self.encoder = _build(parts['encoder'])
        self.query_head = MODELS.build(query_head)
        self.decoder = MODELS.build(parts['decoder'])
        self.bbox_head = MODELS.build(bbox_head)
        self.criterion = _build(criterion)
        self.mask_head = _build(mask_head)
        self.task_heads = () if mask_head is None else ('mask_head',)
        for name, head in (task_heads or {}).items():
            if hasattr(self, name):
                raise ValueError(
                    f'task_heads names a head {name!r}, but that is what another part of the '
                    'detector is called; give it a name of its own, such as keypoint_head'
                )
            self.add_module(name, MODELS.build(head))
            self.task_heads += (name,)
        if freeze_detector:
            self.freeze()
        self.freeze_stages()
        if compile is not None:
            for module in filter(None, (self.encoder, self.decoder)):
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
        extra = max((head.extra_maps for head in self._task_heads()), default=0)
        return maps, tuple(self.neck(maps[extra:]))

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """All losses of a batch; see `SetCriterion` and `TaskHead.loss`.

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
        targets = Targets.from_samples(batch_data_samples)
        outputs, known = self.forward_batch(
            batch_inputs, batch_data_samples, targets
        ).without_known()
        predictions: tuple = (
            outputs.logits,
            outputs.boxes,
            targets,
            outputs.queries.proposal_logits,
            outputs.queries.proposal_boxes,
        )
        if known is not None:
            predictions += (known,)
        # A criterion is a module of these arguments; that it also tells its matches, and scores
        # what is known, is asked of it only where that is needed.
        if outputs.head_inputs is None:
            return self.criterion(*predictions)
        losses, matches = self.criterion.losses_and_matches(*predictions)
        gt_instances = [sample.gt_instances for sample in batch_data_samples]
        for head in self._task_heads():
            losses.update(head.loss(outputs.head_inputs, matches, gt_instances))
        return losses

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """The samples with `pred_instances`; see `DeformableDETRHead.predict`.

        With a mask head they have `masks` (n, h, w) bool, too; see `MaskHead.predict`.
        """
        outputs = self.forward_batch(batch_inputs, batch_data_samples)
        metas = [sample.metainfo for sample in batch_data_samples]
        results = self.bbox_head.predict(outputs.logits[-1], outputs.boxes[-1], metas, rescale)
        samples = self.add_pred_to_datasample(batch_data_samples, results)
        if outputs.head_inputs is not None:
            for head in self._task_heads():
                head.predict(outputs.head_inputs, samples, rescale)
        return samples

    def predict_tensors(self, batch_inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections as a function of tensors alone, for export: the boxes of `predict`.

        `ddetr_plugin.ops.use_reference` makes it one of torch's own operators alone.

        Args:
            batch_inputs: (B, 3, H, W), normalised; nothing of them is padding.

        Returns:
            Scores (B, n), falling, and labels (B, n) int64; boxes (B, n, 4) as (x1, y1, x2, y2) in
            pixels of `batch_inputs`, not clipped; n = min(max_per_img, Q * K).
        """
        logits, boxes = self._forward(batch_inputs)
        found = best_pairs(logits[-1], boxes[-1], self.bbox_head.max_per_img)
        height, width = batch_inputs.shape[-2:]
        x, y = found.boxes[..., 0::2] * width, found.boxes[..., 1::2] * height
        return found.scores, found.labels, torch.stack((x, y), dim=-1).flatten(2)

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class logits (N, B, Q, K) and boxes (N, B, Q, 4) of all layers, without more."""
        return self.forward_batch(batch_inputs, batch_data_samples)[:2]

    def forward_batch(
        self,
        batch_inputs: Tensor,
        batch_data_samples: SampleList | None = None,
        targets: Targets | None = None,
    ) -> Outputs:
        """The network.

        Args:
            batch_inputs: (B, 3, H, W), normalised and padded.
            batch_data_samples: B samples with `img_shape`; None if nothing is padded.
            targets: the ground truths, for query heads that make queries of them; None where
                there is nothing to learn.
        """
        backbone_maps, maps = self.extract_maps(batch_inputs)
        batch_shape = batch_inputs.shape[-2], batch_inputs.shape[-1]
        if batch_data_samples is None:
            image_shapes = [batch_shape] * len(batch_inputs)
        else:
            image_shapes = [sample.img_shape[:2] for sample in batch_data_samples]
        levels = FeatureLevels.from_images(
            [m.shape[-2:] for m in maps], batch_shape, image_shapes, batch_inputs.device
        )
        memory = flatten_levels(maps)
        if self.encoder is not None:
            pos = [self.positional_encoding(mask, m) for mask, m in zip(levels.level_masks(), maps)]
            memory = self.encoder(memory, flatten_levels(pos), levels)
        queries = self.query_head(memory, levels, targets)
        hidden, boxes = self.decoder(
            queries.query,
            queries.query_pos,
            queries.reference,
            memory,
            levels,
            self.bbox_head.regress,
            queries.self_attn_mask,
        )
        head_inputs = None
        if self.task_heads:
            head_inputs = HeadInputs(hidden[-1], memory, levels, maps, backbone_maps, batch_shape)
        return Outputs(self.bbox_head.classify(hidden), boxes, queries, head_inputs)

    def _task_heads(self) -> list[TaskHead]:
        return [getattr(self, name) for name in self.task_heads]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Takes weights of the official release, mmdet, transformers and detrex, too."""
        adopt(state_dict, prefix, self)
        for name in self.task_heads:
            if not any(key.startswith(f'{prefix}{name}.') for key in state_dict):
                words = name.replace('_', ' ')
                print_log(
                    f'The checkpoint has no {words}: the one of this model keeps the weights that '
                    'it has, and without training its results mean nothing.',
                    logger='current',
                    level=logging.WARNING,
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _build(config: dict | None) -> Any:
    return None if config is None else MODELS.build(config)
