"""Deformable DETR with ResNet-50: the model of the paper, every number once."""

custom_imports = dict(imports=['ddetr_plugin'], allow_failed_imports=False)

num_classes = 80
embed_dims = 256
num_heads = 8
num_levels = 4
num_points = 4
num_encoder_layers = 6
num_decoder_layers = 6
feedforward_channels = 1024
dropout = 0.1
num_queries = 300

ms_deform_attn = dict(
    type='ddetr_plugin.MSDeformAttn',
    embed_dims=embed_dims,
    num_heads=num_heads,
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
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
        non_blocking=True,
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[512, 1024, 2048],
        kernel_size=1,
        out_channels=embed_dims,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        # The official weights have a bias before the norm; mmdet drops it by default.
        bias=True,
        # Encoder, decoder and attention take their number of levels from here.
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
        type='ddetr_plugin.LearnedQueryHead', num_queries=num_queries, embed_dims=embed_dims
    ),
    decoder=dict(
        type='ddetr_plugin.DeformableTransformerDecoder',
        num_layers=num_decoder_layers,
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
    ),
    criterion=dict(
        type='ddetr_plugin.SetCriterion',
        assigner=dict(
            type='ddetr_plugin.HungarianAssigner',
            match_costs=[
                dict(type='ddetr_plugin.FocalCost', weight=2.0),
                dict(type='ddetr_plugin.L1Cost', weight=5.0),
                dict(type='ddetr_plugin.GIoUCost', weight=2.0),
            ],
        ),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        # Boxes are normalised: one pixel of 800 x 1333 has area 9e-7.
        loss_iou=dict(type='GIoULoss', eps=1e-12, loss_weight=2.0),
    ),
)
