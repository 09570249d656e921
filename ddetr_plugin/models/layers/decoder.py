"""The deformable transformer decoder (paper 4.1) with iterative box refinement (4.2, A.4)."""

from collections.abc import Callable

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.layers.transformer_layer import TransformerLayer, build_norms
from ddetr_plugin.registry import MODELS

__all__ = ['DeformableTransformerDecoder', 'DeformableTransformerDecoderLayer', 'Regress']

# (layer, hidden (B, Q, C), reference (B, Q, 2 or 4)) -> boxes (B, Q, 4), (cx, cy, w, h); all
# normalised by the unpadded picture. See `DeformableDETRHead.regress`.
Regress = Callable[[int, Tensor, Tensor], Tensor]


@MODELS.register_module()
class DeformableTransformerDecoderLayer(TransformerLayer):
    """Self-attention among queries, cross-attention to the memory, feed-forward network; each
    with dropout, residual and norm.

    Args:
        embed_dims: C, for the norms.
        self_attn: config of a module with the interface of `MultiheadSelfAttention`.
        cross_attn: config of a module with the interface of `MSDeformAttn`.
        ffn: config of a module (B, Q, C) -> (B, Q, C) that adds no residual of its own.
        norm: config of the norm, such as `dict(type='LN')`.
        dropout: after each attention; the feed-forward network has its own.
        with_cp: activation checkpointing; see `TransformerLayer`.
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
        super().__init__(dropout, with_cp, init_cfg)
        self.self_attn = MODELS.build(self_attn)
        self.cross_attn = MODELS.build(cross_attn)
        self.ffn = MODELS.build(ffn)
        self.norms = build_norms(norm, embed_dims, 3)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        reference_points: Tensor,
        levels: FeatureLevels,
        self_attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Updates the queries once.

        Args:
            query: (B, Q, C), content.
            query_pos: (B, Q, C), position, added where attention asks for it.
            memory: (B, S, C).
            reference_points: (B, Q, L, 2 or 4), normalised by each level's padded map.
            levels: describes the memory.
            self_attn_mask: (Q, Q) bool, True where a query (row) must not see another (column).

        Returns:
            (B, Q, C).
        """
        return self.run(
            self._forward, query, query_pos, memory, reference_points, levels, self_attn_mask
        )

    def _forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        reference_points: Tensor,
        levels: FeatureLevels,
        self_attn_mask: Tensor | None,
    ) -> Tensor:
        # A self-attention without masks is a module of two arguments.
        masks = () if self_attn_mask is None else (self_attn_mask,)
        attention = self.self_attn(query + query_pos, query, *masks)
        query = self.add_and_norm(0, attention, query)
        attention = self.cross_attn(query + query_pos, memory, reference_points, levels)
        query = self.add_and_norm(1, attention, query)
        return self.norms[2](query + self.ffn(query))


@MODELS.register_module()
class DeformableTransformerDecoder(BaseModule):
    """A stack of decoder layers that predicts a box for every query after every layer.

    Args:
        num_layers: at least 1.
        layer: config of one layer; built `num_layers` times.
        refine: the next layer's reference is this layer's box, detached (iterative bounding box
            refinement); otherwise every layer sees the initial reference.
        query_pos: config of a module that makes the position (B, Q, C) of the queries of the
            reference (B, Q, 2 or 4) that the next layer attends around, before every layer; None
            takes that of the query head for all layers.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: `num_layers` is less than 1.
    """

    def __init__(
        self,
        num_layers: int,
        layer: dict,
        refine: bool = False,
        query_pos: dict | None = None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if num_layers < 1:
            raise ValueError(f'num_layers must be at least 1, got {num_layers}')
        self.refine = refine
        self.layers = ModuleList(MODELS.build(layer) for _ in range(num_layers))
        self.query_pos = None if query_pos is None else MODELS.build(query_pos)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor | None,
        reference: Tensor,
        memory: Tensor,
        levels: FeatureLevels,
        regress: Regress,
        self_attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decodes the queries; each layer's boxes are predicted once.

        Args:
            query: (B, Q, C), content.
            query_pos: (B, Q, C), position; not read where this decoder makes it of references.
            reference: (B, Q, 2) as (x, y) or (B, Q, 4) as (cx, cy, w, h), normalised by the
                unpadded picture; float32 or better.
            memory: (B, S, C).
            levels: describes the memory.
            regress: makes the boxes of a layer.
            self_attn_mask: (Q, Q) bool, True where a query (row) must not see another (column).

        Returns:
            hidden (N, B, Q, C) and boxes (N, B, Q, 4) after each of the N layers.

        Raises:
            ValueError: there is neither a `query_pos` nor a module that makes it.
        """
        if query_pos is None and self.query_pos is None:
            raise ValueError(
                'the query head gives no query_pos, and the decoder makes none; give '
                'decoder.query_pos, the config of a module from references to positions'
            )
        hidden, boxes = [], []
        # What a layer attends around; what its boxes are relative to may let gradients through.
        attended = reference
        for index, layer in enumerate(self.layers):
            points = levels.to_padded_maps(attended)
            if self.query_pos is not None:
                query_pos = self.query_pos(attended)
            query = layer(query, query_pos, memory, points, levels, self_attn_mask)
            hidden.append(query)
            boxes.append(regress(index, query, reference))
            if self.refine:
                reference = self.next_reference(index, query, reference, boxes[-1], regress)
                attended = reference.detach()
        return torch.stack(hidden), torch.stack(boxes)

    def next_reference(
        self, layer: int, hidden: Tensor, reference: Tensor, box: Tensor, regress: Regress
    ) -> Tensor:
        """What the boxes of the next layer are relative to, where boxes are refined.

        It is detached where the next layer attends around it, whatever this returns. A decoder that
        looks forward twice (DINO, arXiv:2203.03605, 3.6) returns
        ``regress(layer, hidden, reference.detach())``.

        Args:
            layer: 0..N-1, the one that has just been run.
            hidden: (B, Q, C), its output.
            reference: (B, Q, 2 or 4), of which `box` was made.
            box: (B, Q, 4), (cx, cy, w, h) normalised by the unpadded picture.
            regress: see `forward`.
        """
        return box.detach()
