"""A tenth of DETR's long recipe, for the rows that the paper compares at 50 epochs.

It does not say with which batch those were trained; this is DETR's.
"""

_base_ = './schedule_detr_500e.py'

train_cfg = dict(max_epochs=50, val_interval=1)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=50, by_epoch=True, milestones=[40], gamma=0.1)
]
