"""mmdet's own Deformable DETR with the sizes and the weights of one of ours, to compare with."""

import re

from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import ConfigDict
from torch import nn

__all__ = ['mmdet_assigner_config', 'mmdet_name', 'mmdet_twin']


def mmdet_twin(config: ConfigDict, model: nn.Module, assigner: dict | None = None) -> nn.Module:
    """Builds mmdet's model.

    Args:
        config: of our detector: base, refinement or two-stage.
        model: made from `config`; its weights are copied.
        assigner: config of another assigner than mmdet's.

    Returns:
        mmdet's `DeformableDETR`. Its neck has the bias that ours has.

    Raises:
        ValueError: mmdet has no such model.
    """
    head_type = config.query_head.type.split('.')[-1]
    if head_type not in ('LearnedQueryHead', 'TwoStageHead'):
        raise ValueError(f'mmdet has no counterpart of the query head {head_type}')
    two_stage = head_type == 'TwoStageHead'
    if two_stage and config.bbox_head.embed_dims != 256:
        raise ValueError(
            "mmdet's two-stage model works with embed_dims=256 only, got "
            f'{config.bbox_head.embed_dims}'
        )

    def layer_cfg(layer, **attention):
        return dict(
            ffn_cfg=dict(
                embed_dims=layer.ffn.embed_dims,
                feedforward_channels=layer.ffn.feedforward_channels,
                ffn_drop=layer.ffn.ffn_drop,
            ),
            **attention,
        )

    def without_type(part):
        return {key: value for key, value in part.items() if key != 'type'}

    deformable = dict(
        without_type(config.encoder.layer.self_attn),
        batch_first=True,
        dropout=config.encoder.layer.dropout,
    )
    dense = dict(without_type(config.decoder.layer.self_attn), batch_first=True)
    twin = MMDET_MODELS.build(
        dict(
            type='mmdet.DeformableDETR',
            num_queries=config.query_head.num_queries,
            num_feature_levels=config.encoder.num_levels,
            with_box_refine=bool(config.decoder.get('refine')),
            as_two_stage=two_stage,
            data_preprocessor=config.data_preprocessor,
            backbone=config.backbone,
            neck=config.neck,
            encoder=dict(
                num_layers=config.encoder.num_layers,
                layer_cfg=layer_cfg(config.encoder.layer, self_attn_cfg=deformable),
            ),
            decoder=dict(
                num_layers=config.decoder.num_layers,
                return_intermediate=True,
                post_norm_cfg=None,
                layer_cfg=layer_cfg(
                    config.decoder.layer, self_attn_cfg=dense, cross_attn_cfg=dict(deformable)
                ),
            ),
            positional_encoding=without_type(config.positional_encoding),
            bbox_head=dict(
                type='mmdet.DeformableDETRHead',
                num_classes=config.bbox_head.num_classes,
                embed_dims=config.bbox_head.embed_dims,
                sync_cls_avg_factor=True,
                loss_cls=config.criterion.loss_cls,
                loss_bbox=config.criterion.loss_bbox,
                loss_iou=config.criterion.loss_iou,
            ),
            train_cfg=dict(assigner=assigner or mmdet_assigner_config()),
            test_cfg=dict(max_per_img=config.bbox_head.get('max_per_img', 100)),
        )
    )
    # Where branches are shared, mmdet's other names belong to the same tensors.
    weights = {mmdet_name(name, config): tensor for name, tensor in model.state_dict().items()}
    missing, unexpected = twin.load_state_dict(weights, strict=False)
    missing = set(missing) & {name for name, _ in twin.named_parameters()}
    if missing or unexpected:
        raise ValueError(
            f"the weights do not fit mmdet's model: missing {sorted(missing)}, unexpected "
            f'{sorted(unexpected)}'
        )
    return twin


def mmdet_name(name: str, config: ConfigDict) -> str:
    """mmdet's name of a parameter or buffer of a model made from `config`."""
    name = name.removeprefix('query_head.').replace('encoder.level_embed', 'level_embed')
    proposal_branch = rf'bbox_head.\1_branches.{config.decoder.num_layers}'
    return re.sub(r'^(cls|reg)_branch\b', proposal_branch, name)


def mmdet_assigner_config() -> dict:
    """mmdet's assigner with the costs of the paper."""
    return dict(
        type='mmdet.HungarianAssigner',
        match_costs=[
            dict(type='mmdet.FocalLossCost', weight=2.0),
            dict(type='mmdet.BBoxL1Cost', weight=5.0, box_format='xywh'),
            dict(type='mmdet.IoUCost', iou_mode='giou', weight=2.0),
        ],
    )
