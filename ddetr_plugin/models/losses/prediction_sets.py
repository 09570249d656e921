"""Predictions that are scored, what they are matched with, and which of them is not finite."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddetr_plugin.models.losses.targets import Match, Targets

__all__ = ['KnownPredictions', 'LayerMatches', 'Matches', 'PredictionSet', 'first_bad']


class Matches(NamedTuple):
    """The n matches of the last decoder layer, for losses that come after.

    Attributes:
        picture: (n,) int64, 0..B-1.
        query: (n,) int64, 0..Q-1.
        gt: (n,) int64, index of the ground truth in its picture.
        count: scalar by which losses are divided: the number of ground truths, its mean over
            all processes, at least 1.
    """

    picture: Tensor
    query: Tensor
    gt: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here


class KnownPredictions(NamedTuple):
    """Predictions of queries whose ground truths are known before they are made, as in denoising.

    Attributes:
        name: what the names of their losses start with, after the layer's, such as 'dn_'.
        logits: (N, B, Q, K) of the decoder layers.
        boxes: (N, B, Q, 4), (cx, cy, w, h) normalised by the unpadded picture.
        matches: of each picture, (queries (n,) 0..Q-1, ground truths (n,)) int64; a query may have
            no ground truth, and is then trained towards no class.
    """

    name: str
    logits: Tensor
    boxes: Tensor
    matches: Sequence[Match]


class PredictionSet(NamedTuple):
    """Layers whose predictions are scored alike.

    Attributes:
        prefixes: N prefixes of the loss names.
        logits: (N, B, Q, K).
        boxes: (N, B, Q, 4), (cx, cy, w, h) normalised by the unpadded picture.
        targets: what they are matched with.
        matches: of each picture, (queries (n,), ground truths (n,)) int64, the same in all layers;
            None for predictions that the assigner is to match.
    """

    prefixes: tuple[str, ...]
    logits: Tensor
    boxes: Tensor
    targets: Targets
    matches: Sequence[Match] | None = None


class LayerMatches(NamedTuple):
    """The n matches of all N layers of a `PredictionSet`, layer by layer.

    Attributes:
        index: (4, n) int64: layer, picture, query and ground truth of every match.
        counts: N ints, matches of each layer; their sum is n.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    counts: tuple[int, ...]

    @classmethod
    def from_layers(cls, layers: Sequence[Sequence[Match]], device: torch.device) -> 'LayerMatches':
        """Of the matches of every picture of every layer, as the assigner has them on the host."""
        columns = [
            np.stack([np.full_like(query, layer), np.full_like(query, picture), query, gt])
            for layer, pictures in enumerate(layers)
            for picture, (query, gt) in enumerate(pictures)
        ]
        index = torch.from_numpy(np.concatenate(columns, axis=1))
        counts = tuple(sum(len(query) for query, _ in pictures) for pictures in layers)
        return cls(index.to(device, non_blocking=True), counts)

    def of_last_layer(self) -> Tensor:
        """(3, m) int64: picture, query and ground truth."""
        return self.index[1:, self.index.shape[1] - self.counts[-1] :]


def first_bad(sets: Sequence[PredictionSet]) -> str:
    """Names the first tensor that is not as it must be, in the order in which they arise."""
    targets, num_classes = sets[0].targets, sets[0].logits.shape[-1]
    known = (targets.labels >= 0) & (targets.labels < num_classes)
    tensors = [
        (f'ground-truth labels (must be 0..{num_classes - 1})', known.float().log()),
        ('ground-truth boxes', targets.boxes),
    ]
    # Proposals come before the decoder.
    for s in sorted(sets, key=lambda s: s.prefixes != ('enc_',)):
        for prefix, logits, boxes in zip(s.prefixes, s.logits, s.boxes):
            place = _PLACES.get(prefix, f'decoder layer {prefix[1:-1]}')
            tensors += [(f'class logits of {place}', logits), (f'boxes of {place}', boxes)]
    for name, tensor in tensors:
        bad = ~tensor.isfinite().flatten(1).all(1)
        if bad.any():
            return f'the first bad tensor: {name}, picture {int(bad.nonzero()[0])} of the batch'
    return 'predictions and ground truths are finite, so a match cost itself overflows'


_PLACES = {'enc_': 'the encoder proposals', '': 'the last decoder layer'}
