"""DETR's head with a focal loss, for mmdet's `DETR`."""

from mmdet.structures import SampleList
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ddetr_plugin.models.boxes import at_least_float32, box_logits
from ddetr_plugin.models.heads.bbox_head import best_detections, build_box_branch, prior_bias
from ddetr_plugin.models.losses.criterion import SetCriterion
from ddetr_plugin.models.losses.targets import Targets
from ddetr_plugin.registry import MODELS

__all__ = ['FocalDETRHead']


@MODELS.register_module()
class FocalDETRHead(BaseModule):
    """Independent class scores and boxes of queries without references (DETR-DC5+).

    Takes the place of mmdet's `DETRHead` in mmdet's `DETR`, with the same places for its settings,
    where the classification loss is a focal loss: its scores start from a prior, all layers and
    pictures are matched at once, and mmcv's compiled focal loss is not needed on a GPU.

    Args:
        num_classes: K.
        embed_dims: C.
        loss_cls: see `SetCriterion`; no class stands for "no object".
        loss_bbox: see `SetCriterion`.
        loss_iou: see `SetCriterion`; boxes are normalised, so its eps must be small.
        prior_prob: initial probability of every class.
        train_cfg: with `assigner`, see `SetCriterion`. None for a model that only predicts.
        test_cfg: with `max_per_img`, detections kept per picture, over all pairs of query and
            class; 100 if None.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: a number is not positive, `prior_prob` is not between 0 and 1, or `train_cfg`
            or `test_cfg` hold something else.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        loss_cls: dict,
        loss_bbox: dict,
        loss_iou: dict,
        prior_prob: float = 0.01,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        for name, given, wanted in (
            ('train_cfg', train_cfg, 'assigner'),
            ('test_cfg', test_cfg, 'max_per_img'),
        ):
            if given is not None and set(given) != {wanted}:
                raise ValueError(f'{name} must hold {wanted} and nothing else, got {dict(given)}')
        self.max_per_img = 100 if test_cfg is None else test_cfg['max_per_img']
        if min(num_classes, embed_dims, self.max_per_img) < 1 or not 0 < prior_prob < 1:
            raise ValueError(
                'num_classes, embed_dims and max_per_img must be positive and prior_prob between '
                f'0 and 1, got {num_classes}, {embed_dims}, {self.max_per_img} and {prior_prob}'
            )
        self.prior_prob = prior_prob
        self.cls_branch = nn.Linear(embed_dims, num_classes)
        self.reg_branch = build_box_branch(embed_dims)
        self.criterion = None
        if train_cfg is not None:
            self.criterion = SetCriterion(train_cfg['assigner'], loss_cls, loss_bbox, loss_iou)

    def init_weights(self) -> None:
        """Rare classes; the box branch stays as torch's Linear starts."""
        super().init_weights()
        nn.init.constant_(self.cls_branch.bias, prior_bias(self.prior_prob))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions of every decoder layer.

        Args:
            hidden_states: (N, B, Q, C).

        Returns:
            Class logits (N, B, Q, K), and boxes (N, B, Q, 4) as (cx, cy, w, h) normalised by the
            unpadded picture; float32 or better.
        """
        logits = at_least_float32(self.cls_branch(hidden_states))
        return logits, box_logits(self.reg_branch, hidden_states).sigmoid()

    def loss(self, hidden_states: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """All losses of a batch; see `SetCriterion` and `Targets.from_samples`.

        Raises:
            ValueError: a label is out of range, or a number is not finite; or the head was built
                without `train_cfg`.
        """
        if self.criterion is None:
            raise ValueError(
                'this head was built without an assigner, so it has no loss; give '
                'train_cfg = dict(assigner=...) in the config of the model'
            )
        logits, boxes = self(hidden_states)
        return self.criterion(logits, boxes, Targets.from_samples(batch_data_samples))

    def predict(
        self, hidden_states: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> list[InstanceData]:
        """Detections of the last layer; see `best_detections`."""
        logits, boxes = self(hidden_states[-1:])
        metas = [sample.metainfo for sample in batch_data_samples]
        return best_detections(logits[0], boxes[0], metas, self.max_per_img, rescale)
