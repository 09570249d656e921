_base_ = './deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    backbone=dict(
        type='ddetr_plugin.DilatedResNet',
        out_indices=(3,),
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
    ),
    neck=dict(in_channels=[2048], num_outs=1),
)
