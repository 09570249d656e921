"""Small models for tests, ours and mmdet's, with the same weights."""

import copy
import logging

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData

from ddetr_plugin.checkpoints import detect_architecture, export
from ddetr_plugin.checkpoints.names.table import module_names, translate
from ddetr_plugin.checkpoints.parity.other_models import mmdet_model
from ddetr_plugin.registry import MODELS

VARIANTS = {
    'base': {},
    'refine': dict(decoder=dict(refine=True), bbox_head=dict(share_branches=False)),
    'two-stage': dict(
        query_head=dict(type='ddetr_plugin.TwoStageHead', num_classes=5),
        decoder=dict(refine=True),
        bbox_head=dict(share_branches=False, initial_size_logit=0.0),
    ),
}


def tiny_config(
    variant='base', embed_dims=32, num_queries=12, dropout=0.0, **changes
) -> ConfigDict:
    """A model of 1 + 2 layers on four levels of a ResNet-18, 5 classes; prefixed throughout."""
    attn = dict(
        type='ddetr_plugin.MSDeformAttn',
        embed_dims=embed_dims,
        num_heads=4,
        num_levels=4,
        num_points=2,
    )
    ffn = dict(
        type='ddetr_plugin.FeedForward',
        embed_dims=embed_dims,
        feedforward_channels=48,
        ffn_drop=dropout,
    )
    layer = dict(embed_dims=embed_dims, ffn=ffn, norm=dict(type='LN'), dropout=dropout)
    model = dict(
        type='ddetr_plugin.DeformableDETR',
        data_preprocessor=dict(
            type='mmdet.DetDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3, pad_size_divisor=1
        ),
        backbone=dict(
            type='mmdet.ResNet',
            depth=18,
            out_indices=(1, 2, 3),
            frozen_stages=1,
            norm_cfg=dict(type='BN', requires_grad=False),
            norm_eval=True,
        ),
        neck=dict(
            type='mmdet.ChannelMapper',
            in_channels=[128, 256, 512],
            kernel_size=1,
            out_channels=embed_dims,
            act_cfg=None,
            norm_cfg=dict(type='GN', num_groups=8),
            bias=True,
            num_outs=4,
        ),
        positional_encoding=dict(
            type='mmdet.SinePositionalEncoding',
            num_feats=embed_dims // 2,
            normalize=True,
            offset=-0.5,
        ),
        encoder=dict(
            type='ddetr_plugin.DeformableTransformerEncoder',
            embed_dims=embed_dims,
            num_levels=4,
            num_layers=1,
            layer=dict(
                type='ddetr_plugin.DeformableTransformerEncoderLayer', self_attn=attn, **layer
            ),
        ),
        query_head=dict(
            type='ddetr_plugin.LearnedQueryHead', num_queries=num_queries, embed_dims=embed_dims
        ),
        decoder=dict(
            type='ddetr_plugin.DeformableTransformerDecoder',
            num_layers=2,
            layer=dict(
                type='ddetr_plugin.DeformableTransformerDecoderLayer',
                self_attn=dict(
                    type='ddetr_plugin.MultiheadSelfAttention',
                    embed_dims=embed_dims,
                    num_heads=4,
                    dropout=dropout,
                ),
                cross_attn=attn,
                **layer,
            ),
        ),
        bbox_head=dict(
            type='ddetr_plugin.DeformableDETRHead',
            num_classes=5,
            embed_dims=embed_dims,
            num_layers=2,
            max_per_img=50,
        ),
        criterion=criterion_config(),
    )
    config = Config(dict(model=model))
    config.merge_from_dict(dict(model=VARIANTS[variant]))
    config.merge_from_dict(dict(model=changes))
    return config.model


def criterion_config() -> dict:
    return dict(
        type='ddetr_plugin.SetCriterion',
        assigner=dict(
            type='ddetr_plugin.HungarianAssigner',
            match_costs=[
                dict(type='ddetr_plugin.FocalCost', weight=2.0),
                dict(type='ddetr_plugin.L1Cost', weight=5.0),
                dict(type='ddetr_plugin.GIoUCost', weight=2.0),
            ],
        ),
        loss_cls=dict(type='mmdet.FocalLoss', use_sigmoid=True, loss_weight=2.0),
        loss_bbox=dict(type='mmdet.L1Loss', loss_weight=5.0),
        loss_iou=dict(type='mmdet.GIoULoss', eps=1e-12, loss_weight=2.0),
    )


def build(config: ConfigDict, seed: int = 0) -> torch.nn.Module:
    """Builds and initialises a model, with noise on every parameter so that none stays zero."""
    torch.manual_seed(seed)
    model = MODELS.build(config)
    initialise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def initialise(model: torch.nn.Module) -> None:
    """`init_weights` without mmengine's report of every parameter in the log."""
    logging.disable(logging.INFO)
    try:
        model.init_weights()
    finally:
        logging.disable(logging.NOTSET)


def mmdet_twin(config: ConfigDict, model: torch.nn.Module, assigner=None) -> torch.nn.Module:
    """mmdet's own Deformable DETR with the sizes of `config` and the converted weights of `model`.

    `assigner` is the config of another assigner than mmdet's.
    """
    weights = export(model.state_dict(), 'mmdet')
    config = copy.deepcopy(config)
    # By default mmdet's neck has no bias, and zeros are left out (D1).
    config.neck.bias = 'neck.convs.0.conv.bias' in weights
    twin = mmdet_model(config, assigner)
    twin.load_state_dict(weights, strict=True)
    return twin


def mmdet_name(name: str, model: torch.nn.Module) -> str:
    """mmdet's name of a parameter of ours."""
    architecture = detect_architecture(model.state_dict(), 'ddetr_plugin')
    return translate(name, {**module_names('mmdet', architecture).theirs, 'backbone': 'backbone'})


def batch(image_shapes=((64, 96), (80, 72)), gts=(3, 2), seed=0, num_classes=5):
    """Random pictures, padded to one batch at the right and the bottom, with ground truths."""
    generator = torch.Generator().manual_seed(seed)
    height = max(h for h, _ in image_shapes)
    width = max(w for _, w in image_shapes)
    inputs = torch.zeros(len(image_shapes), 3, height, width)
    samples = []
    for i, ((h, w), count) in enumerate(zip(image_shapes, gts)):
        inputs[i, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        corners = torch.rand(count, 2, 2, generator=generator).sort(1).values
        boxes = (corners * 0.8 + torch.tensor([[0.0], [0.2]])) * torch.tensor([w, h])
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(h, w),
                ori_shape=(h * 2, w * 2),
                scale_factor=(0.5, 0.5),
                batch_input_shape=(height, width),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes.flatten(1),
            labels=torch.randint(num_classes, (count,), generator=generator),
        )
        samples.append(sample)
    return inputs, samples
