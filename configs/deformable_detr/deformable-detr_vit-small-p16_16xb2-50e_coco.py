"""A plain ViT-S/16 with a simple feature pyramid of the strides 8 to 64, instead of the ResNet."""

_base_ = './deformable-detr_r50_16xb2-50e_coco.py'

vit_channels = 384
vit_layers = 12
# After ViTDet (arXiv:2203.16527): 1e-4 at the top, 0.7 times as much with every block below.
top_mult = 0.5
decay = 0.7
bottom_mult = top_mult * decay**vit_layers

model = dict(
    # Maps and pictures end at the same place.
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type='ddetr_plugin.VisionTransformer',
        embed_dims=vit_channels,
        num_layers=vit_layers,
        num_heads=6,
        feedforward_channels=4 * vit_channels,
        patch_size=16,
        image_size=224,
        drop_path=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth',
        ),
    ),
    neck=dict(
        _delete_=True,
        type='ddetr_plugin.SimpleFeaturePyramid',
        in_channels=vit_channels,
        out_channels=256,
        scales=(2, 1, 0.5, 0.25),
    ),
)

optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'backbone.patch_embed': dict(lr_mult=bottom_mult),
            'backbone.cls_token': dict(lr_mult=bottom_mult, decay_mult=0.0),
            'backbone.pos_embed': dict(lr_mult=bottom_mult, decay_mult=0.0),
            **{
                f'backbone.blocks.{layer}.': dict(
                    lr_mult=top_mult * decay ** (vit_layers - 1 - layer)
                )
                for layer in range(vit_layers)
            },
            'backbone.norm.': dict(lr_mult=top_mult),
        }
    )
)
