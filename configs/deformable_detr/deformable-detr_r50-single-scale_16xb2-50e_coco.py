_base_ = './deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    backbone=dict(out_indices=(3,)),
    neck=dict(in_channels=[2048], num_outs=1),
    encoder=dict(num_levels=1, layer=dict(self_attn=dict(num_levels=1))),
    decoder=dict(layer=dict(cross_attn=dict(num_levels=1))),
)
