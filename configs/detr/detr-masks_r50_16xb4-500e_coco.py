"""DETR's boxes and instance masks, trained together."""

_base_ = [
    '../_base_/models/detr_r50_masks.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/schedule_detr_500e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=4)
