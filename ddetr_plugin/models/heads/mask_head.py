"""Masks of the decoder's outputs: attention maps over the memory, refined by a small pyramid."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from mmdet.structures import DetDataSample
from mmengine.model import BaseModule, ModuleList
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddetr_plugin.models.boxes import at_least_float32
from ddetr_plugin.models.heads.mask_targets import padded_masks
from ddetr_plugin.models.heads.task_head import HeadInputs
from ddetr_plugin.models.losses.prediction_sets import Matches
from ddetr_plugin.registry import MODELS

__all__ = ['MaskHead']


class PictureFeatures(NamedTuple):
    """What is the same for all queries of a picture, computed once.

    Attributes:
        keys: (B, M, D, H * W), of the memory's level.
        padding: (B, 1, H, W) bool, True on padding; None if nothing is padded.
        first: (B, C + M, H, W): the neck's map after the first convolution.
        finer: maps (B, C_i, H_i, W_i), coarsest first.
    """

    keys: Tensor
    padding: Tensor | None
    first: Tensor
    finer: tuple[Tensor, ...]


@MODELS.register_module()
class MaskHead(BaseModule):
    """DETR's mask head (arXiv:2005.12872, 4.4 and Fig. 8) on one level of a multi-scale memory.

    A query's attention over the memory of one level, M maps, is joined to that level's features
    and refined by convolutions, which climb to stride 4 over the backbone's finer maps. As in the
    official release the attention's softmax runs over cells and heads together. What does not
    depend on the query is computed once per picture: of the first convolution that is all but the
    M maps of the attention.

    Args:
        embed_dims: C, a multiple of 16 and of `num_heads`.
        num_heads: M.
        in_channels: of the backbone's maps that are finer than `level`, finest first. The first
            decides the masks' stride.
        level: index of the level of the memory, finest first. 2 is stride 32 behind a neck that
            reads strides 8, 16 and 32: the stride of DETR's only level. The attention of a finer
            one would cost four times as much, and the finer maps bring the detail anyway.
        loss_mask: config of a loss of logits and targets (n, pixels), such as mmdet's FocalLoss;
            averaged over the pixels of the padded batch, as in the official release.
        loss_dice: config of a loss of logits and targets (n, pixels), such as mmdet's DiceLoss
            with `naive_dice=True, eps=1.0`, which is the official one.
        chunk_size: masks that are in memory at full resolution at a time. Where a step has more,
            they are computed a second time for the gradients.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: `embed_dims` does not divide, or there are fewer maps than the neck reads below
            `level`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        in_channels: Sequence[int],
        loss_mask: dict,
        loss_dice: dict,
        level: int = 2,
        chunk_size: int = 16,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        if embed_dims % num_heads or embed_dims % 2 ** (len(in_channels) + 1):
            raise ValueError(
                f'embed_dims must be a multiple of num_heads={num_heads} and of '
                f'{2 ** (len(in_channels) + 1)} (channels halve with every map), got {embed_dims}'
            )
        if not 0 <= level <= len(in_channels) or chunk_size < 1:
            raise ValueError(
                'level must be at least 0 and at most the number of in_channels (every level finer '
                'than it is a map of the backbone, too), and chunk_size at least 1; got '
                f'level={level}, in_channels={tuple(in_channels)} and chunk_size={chunk_size}'
            )
        self.num_heads = num_heads
        self.level = level
        self.chunk_size = chunk_size
        joined = embed_dims + num_heads
        # Channels halve on the way to each finer map.
        widths = [embed_dims // 2 ** (i + 1) for i in range(len(in_channels) + 1)]
        self.query_proj = nn.Linear(embed_dims, embed_dims)
        self.key_proj = nn.Linear(embed_dims, embed_dims)
        pairs = [(joined, joined), (joined, widths[0]), *zip(widths, widths[1:])]
        self.convs = ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairs)
        self.norms = ModuleList(nn.GroupNorm(math.gcd(8, o), o) for _, o in pairs)
        self.adapters = ModuleList(
            nn.Conv2d(i, o, 1) for i, o in zip(reversed(in_channels), widths)
        )
        self.predictor = nn.Conv2d(widths[-1], 1, 3, padding=1)
        self.loss_mask = MODELS.build(loss_mask)
        self.loss_dice = MODELS.build(loss_dice)

    @property
    def extra_maps(self) -> int:
        """How many of the backbone's maps, the finest, are for this head and not for the neck."""
        return len(self.adapters) - self.level

    def init_weights(self) -> None:
        """As the official release: attention Xavier uniform, convolutions Kaiming uniform."""
        super().init_weights()
        for linear in (self.query_proj, self.key_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for conv in (*self.convs, *self.adapters, self.predictor):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def prepare(self, inputs: HeadInputs) -> PictureFeatures:
        """What is the same for all queries of a picture.

        Raises:
            ValueError: the memory has no such level, or the backbone too few maps.
        """
        sizes = inputs.levels.sizes
        needed = len(self.adapters)
        if self.level >= len(sizes) or len(inputs.backbone_maps) < needed:
            raise ValueError(
                f'the mask head reads level {self.level} of the memory and {needed} maps of the '
                f'backbone, got {len(sizes)} levels and {len(inputs.backbone_maps)} maps; set '
                "mask_head.level, mask_head.in_channels and the backbone's out_indices so that "
                'they fit'
            )
        tokens = inputs.memory[:, inputs.levels.tokens_of(self.level)]
        keys = self.key_proj(tokens).transpose(1, 2).unflatten(1, (self.num_heads, -1))
        padding = inputs.levels.level_masks()[self.level]
        conv, channels = self.convs[0], inputs.neck_maps[self.level].shape[1]
        return PictureFeatures(
            keys=keys,
            padding=None if padding is None else padding[:, None],
            first=nnf.conv2d(
                inputs.neck_maps[self.level], conv.weight[:, :channels], conv.bias, padding=1
            ),
            finer=tuple(
                adapter(m)
                for adapter, m in zip(self.adapters, reversed(inputs.backbone_maps[:needed]))
            ),
        )

    def forward(self, features: PictureFeatures, hidden: Tensor, picture: Tensor) -> Tensor:
        """Mask logits (n, H_0, W_0), float32 or better, at the stride of the finest map.

        Args:
            features: of B pictures; see `prepare`.
            hidden: (n, C), of the queries whose masks are wanted.
            picture: (n,) int64, 0..B-1, the picture of each.
        """
        attention = self._attention(features, hidden, picture)
        weight = self.convs[0].weight[:, -self.num_heads :]
        x = features.first[picture] + nnf.conv2d(attention, weight, padding=1)
        # A CPU's autocast leaves the norms in 16 bits, a GPU's does not: either way the
        # convolutions after them round what they get.
        x = self.norms[0](x).relu()
        x = self.norms[1](self.convs[1](x)).relu()
        for finer, conv, norm in zip(features.finer, self.convs[2:], self.norms[2:]):
            x = finer[picture] + nnf.interpolate(x, size=finer.shape[-2:], mode='nearest')
            x = norm(conv(x)).relu()
        return at_least_float32(self.predictor(x)[:, 0])

    def loss(
        self, inputs: HeadInputs, matches: Matches, gt_instances: Sequence[InstanceData]
    ) -> dict[str, Tensor]:
        """`loss_mask` and `loss_dice` of the matched queries, divided by the number of boxes.

        Args:
            inputs: of the batch.
            matches: of the last decoder layer.
            gt_instances: of B pictures, with `masks`: BitmapMasks or PolygonMasks of mmdet, or
                tensors (n, h, w), in the network's input, padded or not.

        Raises:
            ValueError: there are no masks, or masks are larger than the batch.
        """
        device = inputs.hidden.device
        masks = padded_masks(gt_instances, inputs.batch_shape, device)
        starts = torch.tensor([0] + [len(g) for g in gt_instances[:-1]]).cumsum(0)
        index = starts.to(device, non_blocking=True)[matches.picture] + matches.gt
        hidden = inputs.hidden[matches.picture, matches.query]
        features = self.prepare(inputs)
        chunks = list(
            zip(*(x.split(self.chunk_size) for x in (hidden, matches.picture, masks[index])))
        )
        sums = [
            self._chunk_losses(features, *chunk)
            if len(chunks) == 1
            else checkpoint(self._chunk_losses, features, *chunk, use_reentrant=False)
            for chunk in chunks
        ]
        loss_mask, loss_dice = torch.stack(sums).sum(0) / matches.count
        return dict(loss_mask=loss_mask, loss_dice=loss_dice)

    @torch.no_grad()
    def predict(
        self, inputs: HeadInputs, samples: Sequence[DetDataSample], rescale: bool = True
    ) -> None:
        """Adds `masks` (n, h, w) bool and `mask_scores` (n,) to the `pred_instances` of B samples.

        Masks of the detected queries are computed, and of no other. Mask scores are the scores,
        but NaN where a logit of the mask is not finite, as the mask itself does not show it.

        Args:
            inputs: of the batch.
            samples: with `img_shape` and `ori_shape`, (h, w) in pixels, and `pred_instances` with
                `queries` (n,) int64; see `DeformableDETRHead.predict`.
            rescale: masks of the original picture's size instead of the network's input.
        """
        self.predict_masks(self.prepare(inputs), inputs, samples, rescale)

    def predict_masks(
        self,
        features: PictureFeatures,
        inputs: HeadInputs,
        samples: Sequence[DetDataSample],
        rescale: bool,
    ) -> None:
        """`predict`, of features that are prepared."""
        for i, sample in enumerate(samples):
            # A query may be detected as several classes.
            queries, place = sample.pred_instances.queries.unique(return_inverse=True)
            masks, finite = [], []
            for logits in self.full_size_logits(
                features, inputs, i, queries, sample.metainfo, rescale
            ):
                masks.append(logits > 0)
                finite.append(logits.isfinite().flatten(1).all(1))
            found = sample.pred_instances
            found.masks = torch.cat(masks)[place]
            found.mask_scores = found.scores.where(torch.cat(finite)[place], math.nan)

    def full_size_logits(
        self,
        features: PictureFeatures,
        inputs: HeadInputs,
        index: int,
        queries: Tensor,
        meta: dict,
        rescale: bool,
    ) -> Iterator[Tensor]:
        """Mask logits of queries (n,) of the picture with this index, in chunks (m, h, w).

        `meta` has `img_shape` and `ori_shape`; the logits have the latter's size if `rescale`.
        """
        height, width = meta['img_shape'][:2]
        size = tuple(meta['ori_shape'][:2]) if rescale else (height, width)
        # Without queries one empty chunk.
        for chunk in queries.split(self.chunk_size):
            logits = self(features, inputs.hidden[index, chunk], torch.full_like(chunk, index))
            padded = _resized(logits, inputs.batch_shape)
            yield _resized(padded[:, :height, :width], size)

    def _attention(self, features: PictureFeatures, hidden: Tensor, picture: Tensor) -> Tensor:
        """(n, M, H, W), the sum over M, H and W is 1."""
        query = self.query_proj(hidden).unflatten(1, (self.num_heads, 1, -1))  # (n, M, 1, D)
        scores = (query * query.shape[-1] ** -0.5) @ features.keys[picture]
        scores = at_least_float32(scores)[:, :, 0].unflatten(2, features.first.shape[-2:])
        if features.padding is not None:
            scores = scores.masked_fill(features.padding[picture], -math.inf)
        return scores.flatten(1).softmax(1).view_as(scores).to(hidden.dtype)

    def _chunk_losses(
        self, features: PictureFeatures, hidden: Tensor, picture: Tensor, masks: Tensor
    ) -> Tensor:
        """(2,): the sums of both losses over queries (n, C) with masks (n, H, W)."""
        logits = self(features, hidden, picture)
        with torch.autocast(logits.device.type, enabled=False):
            logits = _resized(logits, masks.shape[-2:]).flatten(1)
            wanted = masks.flatten(1).to(logits.dtype)
            loss_mask = self.loss_mask(logits, wanted, reduction_override='none').mean(1)
            loss_dice = self.loss_dice(logits, wanted, reduction_override='none')
        return torch.stack((loss_mask.sum(), loss_dice.sum()))


def _resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h, w) to (n, *size), bilinear."""
    return nnf.interpolate(logits[:, None], size=tuple(size), mode='bilinear')[:, 0]
