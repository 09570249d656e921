"""Boxes and instance masks, trained together."""

_base_ = [
    './_base_/deformable_detr_r50_masks.py',
    './_base_/coco_instance.py',
    './_base_/schedule_50e.py',
    './_base_/default_runtime.py',
]
