"""Detectors of which parts are not trained: stages of the backbone, or all but the task heads."""

from mmdet.models.detectors.base import BaseDetector
from torch import nn

__all__ = ['FreezableDetector']


class FreezableDetector(BaseDetector):
    """For detectors with task heads: freezes the other parts, and what a backbone freezes.

    Attributes:
        task_heads: names of the parts that are task heads, such as 'mask_head'.
        freeze_detector: all parts but the task heads get no gradients and run as in evaluation.
    """

    task_heads: tuple[str, ...] = ()
    freeze_detector = False

    def freeze(self) -> None:
        """Trains the task heads alone from now on.

        Raises:
            ValueError: there is none.
        """
        if not self.task_heads:
            raise ValueError(
                'freeze_detector trains the task heads alone, but there is none; give `mask_head` '
                'or `task_heads` in the config'
            )
        self.freeze_detector = True
        for part in self._detector_parts():
            part.requires_grad_(False)

    def freeze_stages(self) -> None:
        """Lets the backbone freeze its `frozen_stages` now; for the end of `__init__`.

        Many of mmdet's, such as SwinTransformer and EfficientNet, do so in `train`, which a runner
        calls after it has wrapped the model: DistributedDataParallel would wait for gradients of
        parameters that get none.
        """
        self.train()

    def train(self, mode: bool = True) -> 'FreezableDetector':
        """As every module's; a frozen detector stays in evaluation."""
        super().train(mode)
        if self.freeze_detector:
            for part in self._detector_parts():
                part.eval()
        return self

    def _detector_parts(self) -> list[nn.Module]:
        return [part for name, part in self.named_children() if name not in self.task_heads]
