"""What a head for a further task, such as masks, is to the detector."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from ddetr_plugin.models.feature_levels import FeatureLevels, Size
from ddetr_plugin.models.losses.prediction_sets import Matches

__all__ = ['HeadInputs', 'TaskHead']


class HeadInputs(NamedTuple):
    """What a task head reads of a batch.

    Attributes:
        hidden: (B, Q, C) of the last decoder layer.
        memory: (B, S, C) of the encoder.
        levels: describes the memory.
        neck_maps: L maps (B, C, H_l, W_l), finest first: what the encoder was given.
        backbone_maps: maps (B, C_i, H_i, W_i) of the backbone, finest first.
        batch_shape: (H, W) of the padded batch, in pixels.
    """

    hidden: Tensor
    memory: Tensor
    levels: FeatureLevels
    neck_maps: Sequence[Tensor]
    backbone_maps: Sequence[Tensor]
    batch_shape: Size


@runtime_checkable
class TaskHead(Protocol):
    """A module that predicts more of each query than its class and box; `MaskHead` is one."""

    @property
    def extra_maps(self) -> int:
        """How many of the backbone's maps, the finest, are for this head and not for the neck."""

    def loss(
        self, inputs: HeadInputs, matches: Matches, gt_instances: Sequence[InstanceData]
    ) -> dict[str, Tensor]:
        """The losses of the matched queries, scalars by name.

        Args:
            inputs: of the batch.
            matches: of the last decoder layer.
            gt_instances: of B images, with what the pipeline loaded.
        """

    def predict(
        self, inputs: HeadInputs, samples: Sequence[DetDataSample], rescale: bool = True
    ) -> None:
        """Adds its results to the `pred_instances` of B samples.

        Args:
            inputs: of the batch.
            samples: with `pred_instances`, of which `queries` (n,) int64 names the query of each;
                see `DeformableDETRHead.predict`.
            rescale: results in pixels of the original image instead of the network's input.
        """
