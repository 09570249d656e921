"""Sine positional encoding that is computed once per map size."""

import math

from mmdet.models.layers import SinePositionalEncoding as MMDetSinePositionalEncoding
from torch import Tensor

from ddetr_plugin.models.layers.size_cache import SizeCache
from ddetr_plugin.registry import MODELS

__all__ = ['SinePositionalEncoding']

# Two sets of four levels: training and validation, or the two orientations of a picture.
KEPT_SIZES = 8


@MODELS.register_module()
class SinePositionalEncoding(MMDetSinePositionalEncoding):
    """mmdet's, with the encodings of maps without padding kept for the next batch of their size.

    Arguments and numbers are mmdet's.
    """

    def __init__(
        self,
        num_feats: int,
        temperature: int = 10000,
        normalize: bool = False,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
        offset: float = 0.0,
        init_cfg=None,
    ):
        super().__init__(num_feats, temperature, normalize, scale, eps, offset, init_cfg)
        self._kept = SizeCache(KEPT_SIZES)

    def forward(self, mask: Tensor | None, input: Tensor) -> Tensor:
        """Encodes the cells of one map.

        Args:
            mask: (B, H, W), True on padding; None if there is none.
            input: (B, any, H, W), for its size and device.

        Returns:
            (B, 2 * num_feats, H, W) float32, or (1, ...) without padding.
        """
        if mask is not None:
            return super().forward(mask)
        if type(input) is not Tensor:
            # Stands for another one, as while a model is traced without data: so does the encoding.
            return super().forward(None, input[:1])
        size = (tuple(input.shape[-2:]), input.device)
        compute = super().forward
        return self._kept.get(size, lambda: compute(None, input[:1]))
