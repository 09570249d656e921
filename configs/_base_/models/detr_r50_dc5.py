"""DETR-DC5: the last stage of the backbone dilated instead of strided, as in torchvision."""

_base_ = './detr_r50.py'

model = dict(
    backbone=dict(type='ddetr_plugin.DilatedResNet', strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
)
