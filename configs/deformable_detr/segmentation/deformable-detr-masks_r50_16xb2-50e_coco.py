"""Boxes and instance masks, trained together."""

_base_ = [
    '../../_base_/models/deformable_detr_r50_masks.py',
    '../../_base_/datasets/coco_instance.py',
    '../../_base_/schedules/schedule_50e.py',
    '../../_base_/default_runtime.py',
]
