"""Ablation (paper, table 2): multi-scale inputs, no multi-scale attention. Published AP 42.3.

A token of the encoder attends to its own level. Queries of the decoder have none, and the paper
does not say more: here they still attend to all levels.
"""

_base_ = '../deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    encoder=dict(layer=dict(self_attn=dict(type='ddetr_plugin.SameLevelDeformAttn'))),
)
