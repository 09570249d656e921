"""Panoptic segmentation by a mask head: every pixel goes to one thing or stuff class."""

from collections.abc import Sequence

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData
from torch import Tensor

from ddetr_plugin.models.heads.mask_head import MaskHead
from ddetr_plugin.models.heads.task_head import HeadInputs
from ddetr_plugin.registry import MODELS

__all__ = ['PanopticMaskHead', 'merge_segments', 'panoptic_map']

# mmdet's code of a pixel: class + 1000 * number of the instance.
INSTANCE_OFFSET = 1000


@MODELS.register_module()
class PanopticMaskHead(MaskHead):
    """A mask head that also merges things and stuff into one map (arXiv:2005.12872, 4.4).

    Trained as `MaskHead` on things and stuff alike: a stuff class is a ground truth with a box and
    a mask. The arguments are those of `MaskHead`, and

    Args:
        num_things: classes below it are things, each detection a segment of its own; the others
            are stuff, one segment per class.
        num_classes: things and stuff; also the code of a pixel without segment.
        threshold: least score of a segment. The official 0.85 belongs to a softmax; the scores of
            a focal loss are lower.
        min_area: segments of at most so many pixels give them to the others.

    Raises:
        ValueError: `num_things` exceeds `num_classes`; and as `MaskHead`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        in_channels: Sequence[int],
        loss_mask: dict,
        loss_dice: dict,
        num_things: int,
        num_classes: int,
        threshold: float = 0.5,
        min_area: int = 4,
        level: int = 2,
        chunk_size: int = 16,
        init_cfg=None,
    ):
        super().__init__(
            embed_dims, num_heads, in_channels, loss_mask, loss_dice, level, chunk_size, init_cfg
        )
        if not 0 <= num_things <= num_classes < INSTANCE_OFFSET:
            raise ValueError(
                f'num_things must be at most num_classes, and that below {INSTANCE_OFFSET}; got '
                f'{num_things} and {num_classes}'
            )
        self.num_things = num_things
        self.num_classes = num_classes
        self.threshold = threshold
        self.min_area = min_area

    @torch.no_grad()
    def predict(
        self, inputs: HeadInputs, samples: Sequence[DetDataSample], rescale: bool = True
    ) -> None:
        """As `MaskHead.predict`; also adds `pred_panoptic_seg`, with `sem_seg` (1, h, w) int64.

        A pixel is the class of its segment, for things + 1000 * (1, 2, ...), or `num_classes`;
        what CocoPanopticMetric reads. Only a query's best class counts.
        """
        features = self.prepare(inputs)
        self.predict_masks(features, inputs, samples, rescale)
        for i, sample in enumerate(samples):
            found = sample.pred_instances
            queries, labels = best_of_queries(
                *(x[found.scores > self.threshold] for x in (found.queries, found.labels))
            )
            parts = self.full_size_logits(features, inputs, i, queries, sample.metainfo, rescale)
            logits = torch.cat(list(parts))
            coded = panoptic_map(logits, labels, self.num_things, self.num_classes, self.min_area)
            sample.pred_panoptic_seg = PixelData(sem_seg=coded[None])


def best_of_queries(queries: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The first occurrence of each query, (n,) and (n,); the best where scores fall."""
    earlier = (queries[:, None] == queries).tril(-1).any(1)
    return queries[~earlier], labels[~earlier]


def merge_segments(
    logits: Tensor, labels: Tensor, num_things: int, min_area: int = 4
) -> tuple[Tensor, Tensor]:
    """Gives every pixel to the segment of the largest logit.

    Masks of one stuff class are one segment from the start. In the official release they are merged
    after the first round alone, so that once a small segment was dropped, all but the first of
    them are lost, too.

    Args:
        logits: (n, h, w) of masks.
        labels: (n,) int64, their classes.
        num_things: classes from here on are stuff.
        min_area: segments of at most so many pixels are dropped, and their pixels given anew, until
            none is left.

    Returns:
        Owners (h, w) int64, indices of segments, and (k,) the classes of the k segments. Without
        segments the owners are -1.
    """
    is_stuff = labels >= num_things
    stuff = labels[is_stuff].unique()
    merged = [logits[labels == label].amax(0, keepdim=True) for label in stuff]
    logits = torch.cat((logits[~is_stuff], *merged))
    labels = torch.cat((labels[~is_stuff], stuff))
    while len(labels):
        owners = logits.argmax(0)
        large = owners.flatten().bincount(minlength=len(labels)) > min_area
        if large.all():
            return owners, labels
        logits, labels = logits[large], labels[large]
    return torch.full(logits.shape[1:], -1, device=logits.device), labels


def panoptic_map(
    logits: Tensor, labels: Tensor, num_things: int, num_classes: int, min_area: int = 4
) -> Tensor:
    """(h, w) int64 in mmdet's code, of masks as `merge_segments` takes them.

    Class + 1000 * (1, 2, ...) for things, the class for stuff, `num_classes` without segment.
    """
    owners, labels = merge_segments(logits, labels, num_things, min_area)
    is_thing = labels < num_things
    codes = labels + INSTANCE_OFFSET * (is_thing.cumsum(0) * is_thing)
    # -1, no segment, is the last one.
    return torch.cat((codes, codes.new_full((1,), num_classes)))[owners]
