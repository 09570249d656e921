"""Ablation (paper, table 2): as without multi-scale attention, and K = 1. Published AP 41.4."""

_base_ = '../deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    encoder=dict(layer=dict(self_attn=dict(type='ddetr_plugin.SameLevelDeformAttn', num_points=1))),
    decoder=dict(layer=dict(cross_attn=dict(num_points=1))),
)
