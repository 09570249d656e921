"""A feature pyramid from one map (ViTDet, arXiv:2203.16527, section 3)."""

import math
from collections.abc import Sequence

from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from ddetr_plugin.registry import MODELS

__all__ = ['ChannelLayerNorm', 'SimpleFeaturePyramid']


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm of the channels of each cell of a map (B, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) of (B, C, H, W)."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """L maps of one, by deconvolution and pooling; no connection between them.

    The map of scale 2 is one 2 x 2 deconvolution with stride 2, of scale 4 two with norm and GELU
    between them, and so on, each with half the channels of what it takes; that of scale 1/2^k is
    the maximum over 2^k x 2^k cells, fewer at the right and the bottom border. Then a 1 x 1 and a
    3 x 3 convolution, each with a layer norm.

    On a backbone of stride 16, scales of 4 to 1/2 are the strides 4 to 32 of ViTDet, and scales
    of 2 to 1/4 the strides 8 to 64 that Deformable DETR takes from a ResNet.

    Args:
        in_channels: C of the map.
        out_channels: of every map of the pyramid.
        scales: L powers of 2 of either sign, such as 2, 1, 0.5, 0.25.
        init_cfg: mmengine initialisation; default Xavier's uniform distribution.

    Raises:
        ValueError: there is no scale, one is no power of 2, or there are too few channels to
            halve; at forward, if there is not one map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scales: Sequence[float] = (2, 1, 0.5, 0.25),
        init_cfg=None,
    ):
        if init_cfg is None:
            layers = ['Conv2d', 'ConvTranspose2d']
            init_cfg = dict(type='Xavier', layer=layers, distribution='uniform')
        super().__init__(init_cfg)
        if min(in_channels, out_channels) < 1:
            raise ValueError(
                f'in_channels and out_channels must be positive, got {in_channels} and '
                f'{out_channels}'
            )
        if not len(scales) or any(s <= 0 or math.frexp(s)[0] != 0.5 for s in scales):
            raise ValueError(f'scales must be powers of 2, at least one, got {tuple(scales)}')
        self.in_channels = in_channels
        self.convs = ModuleList(self._branch(out_channels, s) for s in scales)

    def _branch(self, out_channels: int, scale: float) -> nn.Sequential:
        steps = math.frexp(scale)[1] - 1  # log2
        if self.in_channels % 2 ** max(steps, 0):
            raise ValueError(
                f'in_channels must be a multiple of {2**steps} for a scale of {scale}, got '
                f'{self.in_channels}'
            )
        layers: list[nn.Module] = []
        channels = self.in_channels
        for step in range(steps):
            if step:
                layers += [ChannelLayerNorm(channels, eps=1e-6), nn.GELU()]
            layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
            channels //= 2
        if steps < 0:
            # Whole windows only would leave the border of odd sizes out.
            layers.append(nn.MaxPool2d(2**-steps, ceil_mode=True))
        for inputs, kernel in ((channels, 1), (out_channels, 3)):
            layers += [
                nn.Conv2d(inputs, out_channels, kernel, padding=kernel // 2, bias=False),
                ChannelLayerNorm(out_channels, eps=1e-6),
            ]
        return nn.Sequential(*layers)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The pyramid.

        Args:
            maps: one map (B, in_channels, H, W).

        Returns:
            L maps (B, out_channels, ceil(H * scale), ceil(W * scale)).
        """
        if len(maps) != 1 or maps[0].dim() != 4 or maps[0].shape[1] != self.in_channels:
            raise ValueError(
                f'maps must be one map (B, {self.in_channels}, H, W), got '
                f'{[tuple(m.shape) for m in maps]}'
            )
        return tuple(conv(maps[0]) for conv in self.convs)
