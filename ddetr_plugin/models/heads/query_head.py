"""Where the decoder's queries and references come from: learned, or the encoder's proposals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ddetr_plugin.models.boxes import at_least_float32, regress_boxes, sine_embedding
from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.heads.bbox_head import build_box_branch, prior_bias
from ddetr_plugin.models.layers.token_linear import TokenLinear
from ddetr_plugin.models.losses.targets import Match, Targets
from ddetr_plugin.registry import MODELS

__all__ = [
    'ContentTwoStageHead',
    'InitialQueries',
    'KnownQueries',
    'LearnedQueryHead',
    'TwoStageHead',
]


class KnownQueries(NamedTuple):
    """Queries made of ground truths, as in denoising: the first of all, for a training alone.

    Attributes:
        name: what the names of their losses start with, such as 'dn_'.
        count: how many of the Q queries of each picture they are.
        matches: of each picture, (queries (n,) 0..count-1, ground truths (n,)) int64 on the host.
            The others of the first `count` are trained towards no class.
    """

    name: str
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    matches: Sequence[Match]


class InitialQueries(NamedTuple):
    """What a query head hands to the decoder, and to the criterion if it made proposals.

    Attributes:
        query: (B, Q, C), content.
        query_pos: (B, Q, C), position; None where the decoder makes it of the references.
        reference: (B, Q, 2) as (x, y) or (B, Q, 4) as (cx, cy, w, h), normalised by the
            unpadded picture, float32 or better.
        proposal_logits: (B, S, K) of all region proposals, or None.
        proposal_boxes: (B, S, 4), (cx, cy, w, h) normalised by the unpadded picture, or None.
        self_attn_mask: (Q, Q) bool, True where a query (row) must not see another (column), which
            it must not do to all; None if every query sees every other.
        known: which queries have ground truths of their own, or None.
    """

    query: Tensor
    query_pos: Tensor | None
    reference: Tensor
    proposal_logits: Tensor | None = None
    proposal_boxes: Tensor | None = None
    self_attn_mask: Tensor | None = None
    known: KnownQueries | None = None


@MODELS.register_module()
class LearnedQueryHead(BaseModule):
    """Learned queries, the same for every picture; references are a linear map of their position.

    Args:
        num_queries: Q.
        embed_dims: C.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(self, num_queries: int, embed_dims: int, init_cfg=None):
        super().__init__(init_cfg)
        if min(num_queries, embed_dims) < 1:
            raise ValueError(
                f'num_queries and embed_dims must be positive, got {num_queries} and {embed_dims}'
            )
        # First half position, second half content, as in the official weights.
        self.query_embedding = nn.Embedding(num_queries, embed_dims * 2)
        self.reference_points_fc = nn.Linear(embed_dims, 2)

    def init_weights(self) -> None:
        """Embedding from N(0, 1); reference points Xavier uniform, bias 0."""
        super().init_weights()
        nn.init.normal_(self.query_embedding.weight)
        nn.init.xavier_uniform_(self.reference_points_fc.weight)
        nn.init.zeros_(self.reference_points_fc.bias)

    def forward(
        self, memory: Tensor, levels: FeatureLevels, targets: Targets | None = None
    ) -> InitialQueries:
        """Repeats the learned queries for each of the B pictures of `memory` (B, S, C).

        `targets`, the ground truths in training, are for heads that make queries of them.
        """
        pos, query = self.query_embedding.weight.chunk(2, dim=1)
        # Outside autocast: 16 bits are pixels.
        with torch.autocast(pos.device.type, enabled=False):
            reference = at_least_float32(self.reference_points_fc(pos)).sigmoid()
        batch = len(memory)
        return InitialQueries(
            query=query.expand(batch, -1, -1),
            query_pos=pos.expand(batch, -1, -1),
            reference=reference.expand(batch, -1, -1),
        )


@MODELS.register_module()
class TwoStageHead(BaseModule):
    """Region proposals of the encoder become queries (paper 4.2 and A.4, "Two-Stage").

    Every token proposes a box around its centre; the best by the first class row become
    references, and their sine embedding becomes the queries.

    Args:
        num_queries: Q. With fewer tokens than that, every token becomes a query.
        embed_dims: C, a multiple of 4.
        num_classes: K, rows of the proposal classifier. Row 0 is the objectness; the others
            are trained towards zero and exist because published weights have them.
        base_size: side of a proposal on the finest level, relative to the picture; it doubles
            from level to level. Not scaled to the picture on purpose.
        prior_prob: initial probability of every class.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: a number is not positive, or `embed_dims` is not a multiple of 4.
    """

    def __init__(
        self,
        num_queries: int,
        embed_dims: int,
        num_classes: int,
        base_size: float = 0.05,
        prior_prob: float = 0.01,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if min(num_queries, embed_dims, num_classes) < 1:
            raise ValueError(
                'num_queries, embed_dims and num_classes must be positive, got '
                f'{num_queries}, {embed_dims} and {num_classes}'
            )
        if embed_dims % 4:
            raise ValueError(
                'embed_dims must be a multiple of 4 (sine and cosine of four coordinates make '
                f'2 * embed_dims features), got {embed_dims}'
            )
        self.num_queries = num_queries
        self.embed_dims = embed_dims
        self.base_size = base_size
        self.prior_prob = prior_prob
        self.memory_trans_fc = TokenLinear(embed_dims, embed_dims)
        self.memory_trans_norm = nn.LayerNorm(embed_dims)
        self.cls_branch = TokenLinear(embed_dims, num_classes)
        self.reg_branch = build_box_branch(embed_dims)
        embedded = self.embedded_dims(embed_dims)
        self.pos_trans_fc = nn.Linear(embed_dims * 2, embedded)
        self.pos_trans_norm = nn.LayerNorm(embedded)

    def init_weights(self) -> None:
        """Xavier uniform; a proposal starts as exactly its token's box, with a rare class."""
        super().init_weights()
        for linear in (self.memory_trans_fc, self.pos_trans_fc):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.constant_(self.cls_branch.bias, prior_bias(self.prior_prob))
        for parameter in self.reg_branch[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, memory: Tensor, levels: FeatureLevels, targets: Targets | None = None
    ) -> InitialQueries:
        """Proposes boxes on every token of `memory` (B, S, C) and selects the best as queries.

        `targets`, the ground truths in training, are for heads that make queries of them.
        """
        anchors = self._anchors(levels)  # (B, S, 4)
        # False for every token in the padding: its centre lies beyond 1.
        valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)
        # Invalid tokens keep a logit, and may be chosen where nothing better is left; their
        # memory must be zero before the projection, or padding would decide which.
        anchor_logits = torch.log(anchors / (1 - anchors)).masked_fill(~valid, math.inf)
        hidden = self.memory_trans_fc(memory.masked_fill(~valid, 0.0))
        hidden = _normalised(self.memory_trans_norm, hidden)

        logits = at_least_float32(self.cls_branch(hidden))
        boxes = regress_boxes(self.reg_branch, hidden, anchor_logits)
        num_queries = min(self.num_queries, logits.shape[1])
        best = logits[..., :1].topk(num_queries, dim=1).indices  # (B, Q, 1)
        reference = boxes.detach().gather(1, best.expand(-1, -1, 4))

        embedding = sine_embedding(reference, self.embed_dims // 2)
        embedding = self.pos_trans_fc(embedding.to(self.pos_trans_fc.weight.dtype))
        embedding = _normalised(self.pos_trans_norm, embedding)
        features = hidden.gather(1, best.expand(-1, -1, self.embed_dims))
        query, query_pos = self.initial_queries(embedding, features)
        return InitialQueries(query, query_pos, reference, logits, boxes)

    @staticmethod
    def embedded_dims(embed_dims: int) -> int:
        """Features of a box's embedding: position and content, 2 * C."""
        return embed_dims * 2

    def initial_queries(self, embedding: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Content and position, both (B, Q, C), of the selected proposals.

        Args:
            embedding: (B, Q, 2 * C), of their boxes.
            features: (B, Q, C), of their tokens.
        """
        query_pos, query = embedding.chunk(2, dim=-1)
        return query, query_pos

    def _anchors(self, levels: FeatureLevels) -> Tensor:
        """(B, S, 4) float32: (cx, cy, w, h) of each token, normalised by the unpadded picture.

        Tokens in the padding lie outside 0..1.
        """
        anchors = []
        for level, centres in enumerate(levels.cell_centres()):
            centres = centres / levels.valid_sizes[:, None, level]  # (B, H_l * W_l, 2)
            size = torch.full_like(centres, self.base_size * 2**level)
            anchors.append(torch.cat((centres, size), dim=-1))
        return torch.cat(anchors, dim=1)


@MODELS.register_module()
class ContentTwoStageHead(TwoStageHead):
    """Queries that start with the features of their proposals; only their position is embedded.

    Not in the paper; see Efficient DETR (arXiv:2104.01318) and RT-DETR (arXiv:2304.08069). The
    decoder starts from what the encoder saw instead of from nothing, which short trainings gain
    much from. Arguments are those of `TwoStageHead`; `pos_trans_*` have half as many rows.
    """

    @staticmethod
    def embedded_dims(embed_dims: int) -> int:
        """Features of a box's embedding: position, C."""
        return embed_dims

    def initial_queries(self, embedding: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """The features as content, the embedding (B, Q, C) as position."""
        return features, embedding


def _normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """The norm of `x` in the dtype of its weights, float32 under autocast: queries start so.

    A GPU's autocast does so by itself, a CPU's leaves the norm in 16 bits.
    """
    return norm(x.to(norm.weight.dtype))
