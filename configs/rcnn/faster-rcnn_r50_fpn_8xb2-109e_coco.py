"""Faster R-CNN + FPN as DETR compares with it: GIoU losses, DETR's augmentation, 109 epochs.

Needs full mmcv. The epochs are detectron2's 9x schedule: 810,000 steps of 16 pictures out of the
118,287 of COCO train2017. Its learning rate falls 60,000 and 20,000 steps before the end: after
epochs 101 and 107.
"""

_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/default_runtime.py',
]

custom_imports = dict(imports=['ddetr_plugin'], allow_failed_imports=False)

# Only GIoU, with weights 20 and 1 for boxes and proposals (arXiv:2005.12872, A.4).
model = dict(
    rpn_head=dict(
        reg_decoded_bbox=True, loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=1.0)
    ),
    roi_head=dict(
        bbox_head=dict(
            reg_decoded_bbox=True,
            loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=20.0),
        )
    ),
)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=109, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=109, by_epoch=True, milestones=[101, 107], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
