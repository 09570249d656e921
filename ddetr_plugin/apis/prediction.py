"""What every prediction has in common: its settings, what may go wrong, and its result."""

from dataclasses import dataclass, replace

import cv2
from mmengine.structures import InstanceData

from ddetr_plugin.apis.detections import Detections
from ddetr_plugin.apis.post_processing import one_class_per_box, suppress_overlaps
from ddetr_plugin.apis.tiles import make_tiles
from ddetr_plugin.compat import MissingMMCVOpError
from ddetr_plugin.datasets import UnreadableImageError
from ddetr_plugin.models.losses.assigner import NotFiniteError

__all__ = ['IMAGE_ERRORS', 'MODEL_ERRORS', 'PredictionSettings', 'describe_error', 'fill_in']

# What one image may cost without ending the others, not even one too large for the memory.
IMAGE_ERRORS = (cv2.error, ValueError, RuntimeError, MemoryError, AssertionError)
# Of these the model is at fault, and the other images would be no better.
MODEL_ERRORS = (MissingMMCVOpError, NotFiniteError)


@dataclass(frozen=True)
class PredictionSettings:
    """How images are predicted; the attributes are arguments of `Detector.__call__`.

    Raises:
        ValueError: one of them is out of range.
    """

    score_thr: float
    batch_size: int
    num_workers: int
    one_class_per_box: bool
    nms: float | None
    tiles: int | None
    overlap: float
    keep_images: bool

    def __post_init__(self):
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                'batch_size must be 1 or more and num_workers 0 or more, got '
                f'{self.batch_size} and {self.num_workers}'
            )
        if self.nms is not None and not 0 <= self.nms <= 1:
            raise ValueError(f'the IoU of nms must be 0..1, got {self.nms}')
        if self.tiles is not None:
            make_tiles((1, 1), self.tiles, self.overlap)

    def choose(self, found: InstanceData) -> InstanceData:
        """The detections of one piece of an image that are wanted."""
        if self.one_class_per_box:
            found = one_class_per_box(found)
        return found[found.scores >= self.score_thr]


def fill_in(record: Detections, found: InstanceData, settings: PredictionSettings) -> Detections:
    """`record` with the detections that were found, as arrays.

    Args:
        record: without detections.
        found: of `PredictionSettings.choose`, on the CPU, in pixels of the original image.
        settings: of which `nms` is done here, on the whole image.
    """
    if settings.nms is not None:
        found = suppress_overlaps(found, settings.nms)
    boxes = getattr(found.bboxes, 'tensor', found.bboxes)  # mmdet's boxes are classes around one
    queries, masks = found.get('queries'), found.get('masks')
    return replace(
        record,
        boxes=boxes.float().numpy(),
        scores=found.scores.float().numpy(),
        labels=found.labels.long().numpy(),
        queries=None if queries is None else queries.long().numpy(),
        masks=None if masks is None else masks.bool().numpy(),
    )


def describe_error(error: Exception) -> str:
    """Why an image has no detections, in a line."""
    if isinstance(error, UnreadableImageError):
        return f'not a readable image ({error})'
    if isinstance(error, cv2.error) and error.func == 'resize':
        reason = 'no width or height is left at the size that the network sees'
    else:
        reason = ' '.join(str(error).split())[:300] or type(error).__name__
    return f'cannot be predicted ({reason})'
