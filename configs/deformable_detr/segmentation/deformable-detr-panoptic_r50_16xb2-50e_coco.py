"""Things and stuff: every segment is an instance with a box and a mask, trained together."""

_base_ = [
    '../../_base_/models/deformable_detr_r50_masks.py',
    '../../_base_/datasets/coco_panoptic.py',
    '../../_base_/schedules/schedule_50e.py',
    '../../_base_/default_runtime.py',
]

num_segment_classes = _base_.num_things + _base_.num_stuff

model = dict(
    bbox_head=dict(num_classes=num_segment_classes),
    mask_head=dict(
        type='ddetr_plugin.PanopticMaskHead',
        num_things=_base_.num_things,
        num_classes=num_segment_classes,
    ),
)

# mmengine does not know that a higher PQ is better.
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ', rule='greater'))
