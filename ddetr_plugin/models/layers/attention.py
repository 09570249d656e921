"""Multi-scale deformable attention, and the self-attention of decoder queries."""

import math

import torch
import torch.nn.functional as nnf
from mmengine.model import BaseModule
from torch import Tensor, nn

from ddetr_plugin.models.boxes import at_least_float32
from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.layers.token_linear import TokenLinear
from ddetr_plugin.ops import dropout, ms_deform_attn_fused
from ddetr_plugin.registry import MODELS

__all__ = ['MSDeformAttn', 'MultiheadSelfAttention']


@MODELS.register_module()
class MSDeformAttn(BaseModule):
    """Multi-scale deformable attention, Eq. 3 of arXiv:2010.04159.

    Returns the attention only; residual, dropout and norm belong to the layer.

    Args:
        embed_dims: C, a multiple of `num_heads`.
        num_heads: M.
        num_levels: L; in a `DeformableDETR`, the neck's by default.
        num_points: P, sampling points of each head on each level.
        init_cfg: mmengine initialisation, applied before the paper's (A.4).

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
        if min(embed_dims, num_heads, num_levels, num_points) < 1:
            raise ValueError(
                'embed_dims, num_heads, num_levels and num_points must be positive, got '
                f'{embed_dims}, {num_heads}, {num_levels} and {num_points}'
            )
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims must be a multiple of num_heads, got {embed_dims} and {num_heads}'
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = TokenLinear(embed_dims, samples * 2)
        self.attention_weights = TokenLinear(embed_dims, samples)
        self.value_proj = TokenLinear(embed_dims, embed_dims)
        self.output_proj = TokenLinear(embed_dims, embed_dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Points on a ray per head, the k-th at k cells; uniform attention (paper A.4)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)  # (M, 2)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None] * distance[:, None]  # (M, 1, P, 2)
        with torch.no_grad():
            bias = self.sampling_offsets.bias.view(self.num_heads, -1, self.num_points, 2)
            bias.copy_(offsets.expand_as(bias))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def init_weights(self) -> None:
        """Initialises anew, after a parent may have drawn all matrices from one distribution."""
        super().init_weights()
        self.reset_parameters()

    def forward(
        self, query: Tensor, memory: Tensor, reference_points: Tensor, levels: FeatureLevels
    ) -> Tensor:
        """Samples `memory` around the reference points and mixes what it finds.

        Args:
            query: (B, Q, C), position already added.
            memory: (B, S, C), the flattened levels.
            reference_points: (B or 1, Q, L, 2) as (x, y) or (B or 1, Q, L, 4) as (cx, cy, w, h),
                normalised by the *padded* map of each level; float32 or better.
            levels: describes `memory`; padded tokens contribute zero.

        Returns:
            (B, Q, C), dtype of the output projection.

        Raises:
            ValueError: shapes do not fit this module; the message names the argument.
        """
        self._check(query, memory, levels)
        value = self.value_proj(memory)
        if levels.padding_mask is not None:
            value = value.masked_fill(levels.padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))  # (B, S, M, D)
        offsets, logits = self.points_and_logits(query)
        sampled = ms_deform_attn_fused(
            value,
            # Python ints: the fallback in PyTorch would read the tensor back from the device.
            levels.sizes,
            None,
            reference_points.to(offsets.dtype),
            offsets,  # (B, Q, M, L, P, 2)
            logits,  # (B, Q, M, L, P)
        )
        return self.output_proj(sampled)

    def points_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Where each query looks, and how much it wants to: what `forward` gives to the operator.

        `ddetr_plugin.ops.sampling_locations` makes locations of the offsets; the softmax of the
        logits over L * P points of a head are the attention weights.

        Args:
            query: (B, Q, C), position already added.

        Returns:
            Offsets (B, Q, M, L, P, 2) as (x, y), in cells around references (x, y), in P-ths of
            half the size around references (cx, cy, w, h); logits (B, Q, M, L, P). Float32 or
            better.
        """
        heads = (self.num_heads, self.num_levels, self.num_points)
        # Outside autocast: an offset in 16 bits misses its cell on large maps.
        with torch.autocast(query.device.type, enabled=False):
            query = query.to(self.sampling_offsets.weight.dtype)
            offsets = self.sampling_offsets(query).unflatten(-1, (*heads, 2))
            logits = self.attention_weights(query).unflatten(-1, heads)
        return at_least_float32(offsets), at_least_float32(logits)

    def _check(self, query: Tensor, memory: Tensor, levels: FeatureLevels) -> None:
        """What the operator does not see, or would name otherwise."""
        if query.dim() != 3 or query.shape[-1] != self.embed_dims:
            raise ValueError(f'query must be (B, Q, {self.embed_dims}), got {tuple(query.shape)}')
        if len(levels.sizes) != self.num_levels:
            raise ValueError(
                f'levels must have num_levels={self.num_levels} sizes, got {levels.sizes}; leave '
                "num_levels of every MSDeformAttn out, and it is the neck's num_outs"
            )
        if len(levels.valid_ratios) != query.shape[0]:
            raise ValueError(
                f'levels must describe the B={query.shape[0]} pictures of query, got '
                f'{len(levels.valid_ratios)}'
            )
        tokens = sum(levels.tokens_per_level)
        if memory.shape != (query.shape[0], tokens, self.embed_dims):
            raise ValueError(
                f'memory must be (B, S, C) = {(query.shape[0], tokens, self.embed_dims)} for '
                f'levels of {levels.sizes}, got {tuple(memory.shape)}'
            )


@MODELS.register_module()
class MultiheadSelfAttention(BaseModule):
    """Attention among the decoder's queries (Eq. 1), with the parameters of torch's own module.

    Args:
        embed_dims: C, a multiple of `num_heads`.
        num_heads: M.
        dropout: on the attention weights.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: `embed_dims` is not a multiple of `num_heads`.
    """

    def __init__(
        self, embed_dims: int = 256, num_heads: int = 8, dropout: float = 0.0, init_cfg=None
    ):
        super().__init__(init_cfg)
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims must be a multiple of num_heads, got {embed_dims} and {num_heads}'
            )
        self.num_heads = num_heads
        self.dropout = dropout
        # Initialises its parameters; forward computes with them by itself, because this module
        # would project queries and keys apart, although here they are one tensor.
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, batch_first=True)

    def forward(self, query: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attends from every query to every query.

        Args:
            query: (B, Q, C), position already added; also the keys.
            value: (B, Q, C).
            mask: (Q, Q) bool, True where a query (row) must not see another (column), as in
                torch's own module; of every row some must be False.

        Returns:
            (B, Q, C), without residual.
        """
        width = value.shape[-1]
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        query_and_key = nnf.linear(query, weight[: 2 * width], bias[: 2 * width])
        value = nnf.linear(value, weight[2 * width :], bias[2 * width :])
        q, k = (self._split_heads(x) for x in query_and_key.chunk(2, dim=-1))
        v = self._split_heads(value)
        dropout_p = self.dropout if self.training else 0.0
        if dropout_p and q.device.type == 'cpu':
            # torch draws the mask of its attention in one thread. As there, scores are float32
            # under autocast: rounded to 16 bits, a score of 8 is off by up to 1/32.
            with torch.autocast('cpu', enabled=False):
                q, k = at_least_float32(q), at_least_float32(k)
                scores = q @ (k / math.sqrt(q.shape[-1])).transpose(-1, -2)
                if mask is not None:
                    scores = scores.masked_fill(mask, -math.inf)
                weights = scores.softmax(-1)
            attended = dropout(weights.to(v.dtype), dropout_p) @ v
        else:
            visible = None if mask is None else ~mask
            attended = nnf.scaled_dot_product_attention(
                q, k, v, attn_mask=visible, dropout_p=dropout_p
            )
        return self.attn.out_proj(attended.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, M, Q, D) of (B, Q, M * D)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
