"""The deformable transformer decoder (paper 4.1) with iterative box refinement (4.2, A.4)."""

from collections.abc import Callable

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule, ModuleList
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.layers.encoder import xavier_uniform_matrices
from ddetr_plugin.ops import dropout_add
from ddetr_plugin.registry import MODELS

__all__ = ['DeformableTransformerDecoder', 'DeformableTransformerDecoderLayer']


@MODELS.register_module()
class DeformableTransformerDecoderLayer(BaseModule):
    """Self-attention among queries, cross-attention to the memory, feed-forward network; each
    with dropout, residual and norm.

    Args:
        embed_dims: C, for the norms.
        self_attn: config of a module with the interface of `MultiheadSelfAttention`.
        cross_attn: config of a module with the interface of `MSDeformAttn`.
        ffn: config of a module (B, Q, C) -> (B, Q, C) that adds no residual of its own.
        norm: config of the norm, such as `dict(type='LN')`.
        dropout: after each attention; the feed-forward network has its own.
        with_cp: activation checkpointing, as in `DeformableTransformerEncoderLayer`.
        init_cfg: mmengine initialisation.
    """

    def __init__(
        self,
        embed_dims: int,
        self_attn: dict,
        cross_attn: dict,
        ffn: dict,
        norm: dict,
        dropout: float = 0.1,
        with_cp: bool = False,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        self.with_cp = with_cp
        self.self_attn = MODELS.build(self_attn)
        self.cross_attn = MODELS.build(cross_attn)
        self.ffn = MODELS.build(ffn)
        self.norms = ModuleList(build_norm_layer(norm, embed_dims)[1] for _ in range(3))
        self.dropout = dropout

    def init_weights(self) -> None:
        """All matrices Xavier uniform, then what the parts define for themselves."""
        if not self.is_init:  # else the parts would not be asked again
            xavier_uniform_matrices(self)
        super().init_weights()

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        reference_points: Tensor,
        levels: FeatureLevels,
    ) -> Tensor:
        """Updates the queries once.

        Args:
            query: (B, Q, C), content.
            query_pos: (B, Q, C), position, added where attention asks for it.
            memory: (B, S, C).
            reference_points: (B, Q, L, 2 or 4), normalised by each level's padded map.
            levels: describes the memory.

        Returns:
            (B, Q, C).
        """
        arguments = (query, query_pos, memory, reference_points, levels)
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self._forward, *arguments, use_reentrant=False)
        return self._forward(*arguments)

    def _forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        reference_points: Tensor,
        levels: FeatureLevels,
    ) -> Tensor:
        attention = self.self_attn(query + query_pos, query)
        query = self.norms[0](dropout_add(attention, query, self.dropout, self.training))
        attention = self.cross_attn(query + query_pos, memory, reference_points, levels)
        query = self.norms[1](dropout_add(attention, query, self.dropout, self.training))
        return self.norms[2](query + self.ffn(query))


@MODELS.register_module()
class DeformableTransformerDecoder(BaseModule):
    """A stack of decoder layers that predicts a box for every query after every layer.

    Args:
        num_layers: at least 1.
        layer: config of one layer; built `num_layers` times.
        refine: the next layer's reference is this layer's box, detached (iterative bounding box
            refinement); otherwise every layer sees the initial reference.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: `num_layers` is less than 1.
    """

    def __init__(self, num_layers: int, layer: dict, refine: bool = False, init_cfg=None):
        super().__init__(init_cfg)
        if num_layers < 1:
            raise ValueError(f'num_layers must be at least 1, got {num_layers}')
        self.refine = refine
        self.layers = ModuleList(MODELS.build(layer) for _ in range(num_layers))

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        levels: FeatureLevels,
        regress: Callable[[int, Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Decodes the queries; each layer's boxes are predicted once.

        Args:
            query: (B, Q, C), content.
            query_pos: (B, Q, C), position.
            reference: (B, Q, 2) as (x, y) or (B, Q, 4) as (cx, cy, w, h), normalised by the
                unpadded picture; float32 or better.
            memory: (B, S, C).
            levels: describes the memory.
            regress: (layer, hidden (B, Q, C), reference) -> boxes (B, Q, 4), (cx, cy, w, h)
                normalised by the unpadded picture; see `DeformableDETRHead.regress`.

        Returns:
            hidden (N, B, Q, C) and boxes (N, B, Q, 4) after each of the N layers.
        """
        hidden, boxes = [], []
        for index, layer in enumerate(self.layers):
            points = levels.to_padded_maps(reference)
            query = layer(query, query_pos, memory, points, levels)
            hidden.append(query)
            boxes.append(regress(index, query, reference))
            if self.refine:
                reference = boxes[-1].detach()
        return torch.stack(hidden), torch.stack(boxes)
