"""ResNet with torchvision's reading of dilation, for the DC5 models."""

from mmdet.models.backbones import ResNet

from ddetr_plugin.registry import MODELS

__all__ = ['DilatedResNet']


@MODELS.register_module()
class DilatedResNet(ResNet):
    """mmdet's ResNet, but the first block of a dilated stage keeps the previous dilation.

    torchvision's `replace_stride_with_dilation`, with which the DC5 weights of DETR and
    Deformable DETR were trained, dilates a stage from its second block on; mmdet dilates every
    block. Same parameters, other numbers. Arguments are those of mmdet's ResNet.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        before = 1
        for name, dilation in zip(self.res_layers, self.dilations):
            first = getattr(self, name)[0]
            for conv in (first.conv1, first.conv2):
                if conv.kernel_size == (3, 3) and conv.dilation == (dilation, dilation):
                    conv.dilation = conv.padding = (before, before)
            before = dilation
