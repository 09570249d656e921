"""DETR's boxes and instance masks, trained together."""

_base_ = [
    './_base_/detr_r50_masks.py',
    './_base_/coco_instance.py',
    './_base_/schedule_detr_500e.py',
    './_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=4)
