"""DETR's panoptic model, trained together.

The paper trains boxes first and then, for 25 epochs, the masks alone, and says that this is as good
and takes less time.
"""

_base_ = [
    '../_base_/models/detr_r50_masks.py',
    '../_base_/datasets/coco_panoptic.py',
    '../_base_/schedules/schedule_detr_500e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=4)

num_segment_classes = _base_.num_things + _base_.num_stuff

model = dict(
    bbox_head=dict(num_classes=num_segment_classes),
    mask_head=dict(
        type='ddetr_plugin.PanopticMaskHead',
        num_things=_base_.num_things,
        num_classes=num_segment_classes,
        # The official one, of a softmax.
        threshold=0.85,
    ),
)

# mmengine does not know that a higher PQ is better.
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ', rule='greater'))
