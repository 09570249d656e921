_base_ = [
    './_base_/deformable_detr_r50.py',
    './_base_/coco_detection.py',
    './_base_/schedule_50e.py',
    './_base_/default_runtime.py',
]
