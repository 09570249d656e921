_base_ = [
    '../_base_/models/detr_r50_dc5.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_detr_50e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=4)
