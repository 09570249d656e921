"""Instance masks of a detector that is trained already and stays as it is.

The schedule is that of the official DETR's frozen training: 25 epochs, a step after 15.
"""

_base_ = [
    '../../_base_/models/deformable_detr_r50_masks.py',
    '../../_base_/datasets/coco_instance.py',
    '../../_base_/schedules/schedule_50e.py',
    '../../_base_/default_runtime.py',
]

model = dict(freeze_detector=True)

train_cfg = dict(max_epochs=25)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=25, by_epoch=True, milestones=[15], gamma=0.1)
]

# The detector: trained with deformable-detr_r50_16xb2-50e_coco.py, or a published file.
load_from = 'work_dirs/deformable-detr_r50_16xb2-50e_coco/epoch_50.pth'
