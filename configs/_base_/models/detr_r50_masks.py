"""DETR with ResNet-50 and its mask head (arXiv:2005.12872, 4.4)."""

_base_ = './detr_r50.py'

model = dict(
    type='ddetr_plugin.MaskDETR',
    # The finer maps are for the mask head alone.
    backbone=dict(out_indices=(0, 1, 2, 3)),
    bbox_head=dict(type='ddetr_plugin.MaskDETRHead'),
    mask_head=dict(
        type='ddetr_plugin.MaskHead',
        embed_dims=_base_.embed_dims,
        num_heads=_base_.attention.num_heads,
        # The only level of the memory, and the backbone's maps of strides 4, 8 and 16.
        level=0,
        in_channels=[256, 512, 1024],
        loss_mask=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        # Linear denominator, 1 added above and below: the official loss.
        loss_dice=dict(type='DiceLoss', naive_dice=True, eps=1.0, loss_weight=1.0),
    ),
)
