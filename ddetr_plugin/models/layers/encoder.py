"""The deformable transformer encoder (paper 4.1, "Deformable Transformer Encoder")."""

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.layers.size_cache import SizeCache
from ddetr_plugin.models.layers.transformer_layer import TransformerLayer, build_norms
from ddetr_plugin.registry import MODELS

__all__ = ['DeformableTransformerEncoder', 'DeformableTransformerEncoderLayer']

# Both orientations of a picture, in training and in validation.
KEPT_SHAPES = 4


@MODELS.register_module()
class DeformableTransformerEncoderLayer(TransformerLayer):
    """Self-attention over the tokens of all levels, then a feed-forward network, each with
    dropout, residual and norm.

    Args:
        embed_dims: C, for the norms.
        self_attn: config of a module with the interface of `MSDeformAttn`.
        ffn: config of a module (B, S, C) -> (B, S, C) that adds no residual of its own, such as
            `FeedForward`.
        norm: config of the norm, such as `dict(type='LN')`.
        dropout: after the attention; the feed-forward network has its own.
        with_cp: activation checkpointing; see `TransformerLayer`.
        init_cfg: mmengine initialisation.
    """

    def __init__(
        self,
        embed_dims: int,
        self_attn: dict,
        ffn: dict,
        norm: dict,
        dropout: float = 0.1,
        with_cp: bool = False,
        init_cfg=None,
    ):
        super().__init__(dropout, with_cp, init_cfg)
        self.self_attn = MODELS.build(self_attn)
        self.ffn = MODELS.build(ffn)
        self.norms = build_norms(norm, embed_dims, 2)

    def forward(
        self, tokens: Tensor, pos: Tensor, reference_points: Tensor, levels: FeatureLevels
    ) -> Tensor:
        """Refines the tokens once.

        Args:
            tokens: (B, S, C).
            pos: (B or 1, S, C), position and level embedding.
            reference_points: (B, S, L, 2), see `FeatureLevels.token_reference_points`.
            levels: describes the tokens.

        Returns:
            (B, S, C).
        """
        return self.run(self._forward, tokens, pos, reference_points, levels)

    def _forward(
        self, tokens: Tensor, pos: Tensor, reference_points: Tensor, levels: FeatureLevels
    ) -> Tensor:
        attention = self.self_attn(tokens + pos, tokens, reference_points, levels)
        tokens = self.add_and_norm(0, attention, tokens)
        return self.norms[1](tokens + self.ffn(tokens))


@MODELS.register_module()
class DeformableTransformerEncoder(BaseModule):
    """A stack of encoder layers over multi-scale tokens, with an embedding per level.

    Args:
        embed_dims: C.
        num_levels: L, rows of the level embedding; in a `DeformableDETR`, the neck's by default.
        num_layers: number of layers; 0 is allowed and leaves the tokens as they are.
        layer: config of one layer; built `num_layers` times.
        init_cfg: mmengine initialisation.
    """

    def __init__(
        self, embed_dims: int, num_levels: int, num_layers: int, layer: dict, init_cfg=None
    ):
        super().__init__(init_cfg)
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dims))
        nn.init.normal_(self.level_embed)
        self.layers = ModuleList(MODELS.build(layer) for _ in range(num_layers))
        self._kept_points = SizeCache(KEPT_SHAPES)

    def init_weights(self) -> None:
        """Level embedding from N(0, 1), layers by themselves."""
        nn.init.normal_(self.level_embed)
        super().init_weights()

    def forward(self, tokens: Tensor, pos: Tensor, levels: FeatureLevels) -> Tensor:
        """Encodes the tokens into the memory that the decoder reads.

        Args:
            tokens: (B, S, C), flattened levels.
            pos: (B or 1, S, C), positional encoding within each level.
            levels: describes the tokens.

        Returns:
            (B, S, C), dtype of the weights or wider.

        Raises:
            ValueError: `levels` has another number of levels than the embedding.
        """
        if len(levels.sizes) != len(self.level_embed):
            raise ValueError(
                f'levels must have num_levels={len(self.level_embed)} sizes, got {levels.sizes}; '
                "leave the encoder's num_levels out, and it is the neck's num_outs"
            )
        # Slices by Python ints: repeat_interleave with a tensor would synchronise the host.
        pos = torch.cat(
            [
                part + embed
                for part, embed in zip(pos.split(levels.tokens_per_level, 1), self.level_embed)
            ],
            dim=1,
        )
        reference_points = self._reference_points(levels)
        # The residual stream has the dtype of the weights, float32 under autocast. A CPU's autocast
        # leaves group and layer norms in 16 bits, so that the neck's maps would make all of it
        # 16 bits wide; a GPU's computes them in float32.
        tokens = tokens.to(self.level_embed.dtype)
        for layer in self.layers:
            tokens = layer(tokens, pos, reference_points, levels)
        return tokens

    def _reference_points(self, levels: FeatureLevels) -> Tensor:
        """(B, S, L, 2), computed once per shape of batches without padding."""
        # A tensor of another type stands for one, as while a model is traced without data.
        if levels.padding_mask is not None or type(levels.valid_ratios) is not Tensor:
            return levels.token_reference_points()
        shape = (len(levels.valid_ratios), levels.sizes, levels.valid_ratios.device)
        return self._kept_points.get(shape, levels.token_reference_points)
