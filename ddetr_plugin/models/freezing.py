"""Detectors of which parts are not trained: stages of the backbone, or all but the mask head."""

from torch import nn

__all__ = ['FreezableDetector']


class FreezableDetector(nn.Module):
    """For detectors with a part `mask_head`: freezes the others, and what a backbone freezes.

    Attributes:
        freeze_detector: all parts but the mask head get no gradients and run as in evaluation.
    """

    freeze_detector = False

    def freeze(self) -> None:
        """Trains the mask head alone from now on.

        Raises:
            ValueError: there is none.
        """
        if self.mask_head is None:
            raise ValueError(
                'freeze_detector trains the mask head alone, but there is none; give '
                '`mask_head` in the config'
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
        return [part for name, part in self.named_children() if name != 'mask_head']
