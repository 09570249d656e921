"""Models of other libraries with the sizes of one of ours, to compare their numbers."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddetr_plugin.checkpoints.files.config_settings import activation_name
from ddetr_plugin.checkpoints.names.table import with_common_names
from ddetr_plugin.checkpoints.parity.transformers_models import (
    own_resnet,
    timm_resnet,
    transformers_with,
)
from ddetr_plugin.config_levels import with_num_levels
from ddetr_plugin.config_types import type_name

__all__ = [
    'largest_difference',
    'mmdet_assigner_config',
    'mmdet_config',
    'mmdet_model',
    'predict_with',
    'predictions',
    'transformers_model',
    'with_rows',
]


def mmdet_assigner_config() -> dict:
    """mmdet's assigner with the official weights of the costs."""
    return dict(
        type='mmdet.HungarianAssigner',
        match_costs=[
            dict(type='mmdet.FocalLossCost', weight=2.0),
            dict(type='mmdet.BBoxL1Cost', weight=5.0, box_format='xywh'),
            dict(type='mmdet.IoUCost', iou_mode='giou', weight=2.0),
        ],
    )


def _without(config: Mapping, *keys: str) -> dict:
    return {k: v for k, v in config.items() if k not in keys}


def mmdet_model(config: Mapping, assigner: dict | None = None) -> nn.Module:
    """mmdet's own Deformable DETR with the sizes of our model config; see `mmdet_config`."""
    from mmdet.registry import MODELS

    return MODELS.build(mmdet_config(config, assigner))


def mmdet_config(config: Mapping, assigner: dict | None = None) -> dict:
    """The config of mmdet's own Deformable DETR with the sizes of ours, which is not changed.

    Args:
        config: our model's config.
        assigner: config of the assigner; default mmdet's with the official weights.

    Raises:
        ValueError: mmdet has no such model.
    """

    def layer(ours: Mapping, **attention: dict) -> dict:
        ffn = _without(ours['ffn'], 'type', 'add_identity')
        return dict(ffn_cfg=ffn, norm_cfg=ours.get('norm', dict(type='LN')), **attention)

    def deformable(layer: Mapping, attention: str) -> dict:
        sizes = _without(layer[attention], 'type')
        return dict(sizes, batch_first=True, dropout=layer.get('dropout', 0.1))

    config = with_num_levels(config)
    encoder, decoder, head = config['encoder'], config['decoder'], config['bbox_head']
    two_stage = 'TwoStage' in type_name(config['query_head'])
    if two_stage and head['embed_dims'] != 256:
        raise ValueError(
            f"mmdet's two-stage model works with 256 channels only, got {head['embed_dims']} (D17)"
        )
    self_attn = _without(decoder['layer']['self_attn'], 'type')
    self_attn.update(batch_first=True)
    criterion = config['criterion']
    return dict(
        type='mmdet.DeformableDETR',
        num_queries=config['query_head']['num_queries'],
        num_feature_levels=encoder['num_levels'],
        with_box_refine=bool(decoder.get('refine')),
        as_two_stage=two_stage,
        data_preprocessor=config.get('data_preprocessor'),
        backbone=_without(config['backbone'], 'init_cfg'),
        neck=config['neck'],
        encoder=dict(
            num_layers=encoder['num_layers'],
            layer_cfg=layer(
                encoder['layer'], self_attn_cfg=deformable(encoder['layer'], 'self_attn')
            ),
        ),
        decoder=dict(
            num_layers=decoder['num_layers'],
            return_intermediate=True,
            post_norm_cfg=None,
            layer_cfg=layer(
                decoder['layer'],
                self_attn_cfg=self_attn,
                cross_attn_cfg=deformable(decoder['layer'], 'cross_attn'),
            ),
        ),
        positional_encoding=_without(config['positional_encoding'], 'type'),
        bbox_head=dict(
            type='mmdet.DeformableDETRHead',
            num_classes=head['num_classes'],
            embed_dims=head['embed_dims'],
            sync_cls_avg_factor=True,
            loss_cls=criterion['loss_cls'],
            loss_bbox=criterion['loss_bbox'],
            loss_iou=criterion['loss_iou'],
        ),
        train_cfg=dict(assigner=assigner or mmdet_assigner_config()),
        test_cfg=dict(max_per_img=head.get('max_per_img', 100)),
    )


def transformers_model(config: Mapping, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """transformers' DeformableDetrForObjectDetection with the sizes of our model config.

    Its backbone is transformers' own ResNet, which needs no further library; or timm's where it is
    dilated, which transformers' own cannot be.

    Args:
        config: our model's config.
        state: weights in transformers' names, loaded by transformers itself; None for random ones.

    Raises:
        ImportError: transformers is not installed, or timm, and the backbone is dilated.
        ValueError: transformers has no such model.
    """
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    config = with_num_levels(config)
    encoder, decoder, head = config['encoder'], config['decoder'], config['bbox_head']
    attn = encoder['layer']['self_attn']
    heads = decoder['layer']['cross_attn']['num_heads']
    if decoder['layer']['self_attn']['num_heads'] != heads:
        raise ValueError(
            "transformers' decoder has one number of heads, got "
            f'{decoder["layer"]["self_attn"]["num_heads"]} in self_attn and {heads} in cross_attn'
        )
    two_stage = 'TwoStage' in type_name(config['query_head'])
    queries = config['query_head']['num_queries']
    sizes = DeformableDetrConfig(
        backbone_config=_transformers_backbone(config['backbone']),
        d_model=head['embed_dims'],
        num_queries=queries,
        two_stage_num_proposals=queries,
        encoder_layers=encoder['num_layers'],
        decoder_layers=decoder['num_layers'],
        activation_function=activation_name(
            encoder['layer']['ffn'].get('act_cfg', {}).get('type', 'ReLU')
        ),
        encoder_ffn_dim=encoder['layer']['ffn']['feedforward_channels'],
        decoder_ffn_dim=decoder['layer']['ffn']['feedforward_channels'],
        encoder_attention_heads=attn['num_heads'],
        decoder_attention_heads=heads,
        encoder_n_points=attn['num_points'],
        decoder_n_points=decoder['layer']['cross_attn']['num_points'],
        num_feature_levels=encoder['num_levels'],
        with_box_refine=bool(decoder.get('refine')),
        two_stage=two_stage,
        num_labels=head['num_classes'],
        auxiliary_loss=False,
        dropout=0.0,
    )
    if state is None:
        return DeformableDetrForObjectDetection(sizes)
    return transformers_with(sizes, with_common_names(state, 'transformers'))


def _transformers_backbone(backbone: Mapping) -> Any:
    """The config of transformers' backbone with the sizes of ours.

    Raises:
        ImportError: it is dilated, and timm is not installed.
        ValueError: transformers has no such backbone.
    """
    dilations = tuple(backbone.get('dilations', (1, 1, 1, 1)))
    base = backbone.get('base_channels', 64)
    kind = type_name(backbone)
    if 'ResNet' not in kind:
        raise ValueError(f'the comparison with transformers needs a ResNet, got {kind}')
    indices = [s + 1 for s in backbone['out_indices']]
    if dilations == (1, 1, 1, 1):
        return own_resnet(backbone['depth'], indices, base)
    if dilations != (1, 1, 1, 2) or base != 64 or 'Dilated' not in kind:
        raise ValueError(
            'transformers dilates the last stage of a backbone of timm only, from its second block '
            'on (D4), expected ddetr_plugin.DilatedResNet with dilations=(1, 1, 1, 2) and '
            f'base_channels=64, got {kind} with {dilations} and {base}'
        )
    return timm_resnet(f'resnet{backbone["depth"]}', indices)


def predict_with(
    model: Any, inputs: Tensor, image_shapes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Logits (B, Q, K) and boxes (B, Q, 4), (cx, cy, w, h) normalised, of the last layer.

    Args:
        model: ours, mmdet's or transformers'.
        inputs: (B, 3, H, W), padded at the right and the bottom; of any floating-point type.
        image_shapes: B pairs (h, w), unpadded, in pixels.
    """
    from mmdet.structures import DetDataSample

    model.eval()
    inputs = inputs.to(next(model.parameters()).dtype)
    height, width = inputs.shape[-2:]
    metas = [dict(img_shape=shape, batch_input_shape=(height, width)) for shape in image_shapes]
    samples = [DetDataSample(metainfo=meta) for meta in metas]
    with torch.no_grad():
        if hasattr(model, 'forward_batch'):
            logits, boxes = model.forward_batch(inputs, samples)[:2]
            return logits[-1], boxes[-1]
        if hasattr(model, 'forward_transformer'):
            outputs = model.forward_transformer(model.extract_feat(inputs), samples)
            keys = ('hidden_states', 'references')
            logits, boxes = model.bbox_head(**{k: outputs[k] for k in keys})
            return logits[-1], boxes[-1]
        mask = torch.zeros(len(inputs), height, width, dtype=torch.long)
        for i, (h, w) in enumerate(image_shapes):
            mask[i, :h, :w] = 1
        output = model(pixel_values=inputs, pixel_mask=mask)
        return output.logits, output.pred_boxes


def predictions(
    one: nn.Module, other: nn.Module, rows: Sequence[int | None] | None = None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What two models predict on a padded batch of two random images.

    The images are 192 x 224 and 160 x 256 pixels, so that both are padded.

    Args:
        one: a model.
        other: the model that it is compared with.
        rows: for each class of `one` that of `other`, or None where there is none; None if they
            are the same.

    Returns:
        For each model logits (2, Q, K) of the classes that both know, in the order of `one`, and
        boxes (2, Q, 4), (cx, cy, w, h) normalised.
    """
    shapes = [(192, 224), (160, 256)]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.zeros(2, 3, 192, 256)
    for image, (h, w) in zip(inputs, shapes):
        image[:, :h, :w] = torch.randn(3, h, w, generator=generator)
    logits, boxes = predict_with(one, inputs, shapes)
    other_logits, other_boxes = predict_with(other, inputs, shapes)
    if rows is not None:
        known = [i for i, row in enumerate(rows) if row is not None]
        logits, other_logits = logits[..., known], other_logits[..., [rows[i] for i in known]]
    return (logits, boxes), (other_logits, other_boxes)


def largest_difference(
    one: nn.Module, other: nn.Module, rows: Sequence[int | None] | None = None
) -> tuple[float, float]:
    """Largest absolute differences of the logits and of the boxes of `predictions`."""
    (logits, boxes), (other_logits, other_boxes) = predictions(one, other, rows)
    return (logits - other_logits).abs().max().item(), (boxes - other_boxes).abs().max().item()


def with_rows(config: Mapping, rows: int, proposal_rows: int | None = None) -> dict:
    """A copy of our model's config with other numbers of class rows."""
    changed: Any = copy.deepcopy(config)
    changed['bbox_head']['num_classes'] = rows
    if 'num_classes' in changed['query_head']:
        changed['query_head']['num_classes'] = proposal_rows or rows
    return changed
