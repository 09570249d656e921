"""Backbones that mmdet does not have."""

from ddetr_plugin.models.backbones.dilated_resnet import DilatedResNet
from ddetr_plugin.models.backbones.efficientnet_lite import EfficientNetLite0
from ddetr_plugin.models.backbones.vision_transformer import VisionTransformer

__all__ = ['DilatedResNet', 'EfficientNetLite0', 'VisionTransformer']
