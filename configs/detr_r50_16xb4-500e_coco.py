_base_ = [
    './_base_/detr_r50.py',
    './_base_/coco_detection.py',
    './_base_/schedule_detr_500e.py',
    './_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=4)
