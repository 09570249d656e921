"""Deformable attention within each level: the paper's ablation without multi-scale attention."""

import torch
from mmengine.model import BaseModule
from torch import Tensor

from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.layers.attention import MSDeformAttn
from ddetr_plugin.registry import MODELS

__all__ = ['SameLevelDeformAttn']


@MODELS.register_module()
class SameLevelDeformAttn(BaseModule):
    """Every token attends to its own level only (Eq. 2 of arXiv:2010.04159; table 2).

    Takes the place of `MSDeformAttn` in the encoder. All levels share the weights of one
    single-scale `MSDeformAttn`.

    Args:
        embed_dims: C, a multiple of `num_heads`.
        num_heads: M.
        num_levels: L, levels that the tokens come from; in a `DeformableDETR`, the neck's by
            default.
        num_points: K, sampling points of each head.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: a number is not positive, or `embed_dims` is not a multiple of `num_heads`.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if num_levels < 1:
            raise ValueError(f'num_levels must be positive, got {num_levels}')
        self.num_levels = num_levels
        self.attn = MSDeformAttn(embed_dims, num_heads, 1, num_points)

    def forward(
        self, query: Tensor, memory: Tensor, reference_points: Tensor, levels: FeatureLevels
    ) -> Tensor:
        """As `MSDeformAttn.forward`, where the queries are the S tokens themselves.

        Args:
            query: (B, S, C), position already added.
            memory: (B, S, C), the flattened levels.
            reference_points: (B or 1, S, L, 2) as (x, y), normalised by the padded map of each
                level; of each token only the point on its own level is read.
            levels: describes `query` and `memory`.

        Returns:
            (B, S, C).

        Raises:
            ValueError: shapes do not fit; the message names the argument.
        """
        tokens = levels.tokens_per_level
        if len(tokens) != self.num_levels:
            raise ValueError(
                f'levels must have num_levels={self.num_levels} sizes, got {levels.sizes}; leave '
                "num_levels of every attention out, and it is the neck's num_outs"
            )
        for name, tensor in (
            ('query', query),
            ('memory', memory),
            ('reference_points', reference_points),
        ):
            if tensor.shape[1] != sum(tokens):
                raise ValueError(
                    f'{name} must have the S={sum(tokens)} tokens of levels of {levels.sizes}, '
                    f'got {tuple(tensor.shape)}; decoder queries have no level of their own, use '
                    'MSDeformAttn there'
                )
        parts = zip(
            query.split(tokens, dim=1),
            memory.split(tokens, dim=1),
            reference_points.split(tokens, dim=1),
            levels.split(),
        )
        attended = [
            self.attn(queries, values, points[:, :, i : i + 1], level)
            for i, (queries, values, points, level) in enumerate(parts)
        ]
        return torch.cat(attended, dim=1)
