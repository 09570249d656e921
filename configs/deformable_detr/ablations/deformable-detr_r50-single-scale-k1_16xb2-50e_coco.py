"""Ablation (paper, table 2): neither multi-scale inputs nor attention, K = 1. Published AP 39.7."""

_base_ = '../deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    backbone=dict(out_indices=(3,)),
    neck=dict(in_channels=[2048], num_outs=1),
    encoder=dict(layer=dict(self_attn=dict(num_points=1))),
    decoder=dict(layer=dict(cross_attn=dict(num_points=1))),
)
