"""DETR-DC5+ (arXiv:2010.04159, table 1): DETR-DC5 with a focal loss and 300 queries."""

_base_ = [
    '../_base_/models/detr_r50_dc5.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_detr_50e.py',
    '../_base_/default_runtime.py',
]

train_dataloader = dict(batch_size=4)

model = dict(
    num_queries=300,
    bbox_head=dict(
        type='ddetr_plugin.FocalDETRHead',
        loss_cls=dict(
            _delete_=True,
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=2.0,
        ),
        # This head computes with normalised boxes.
        loss_iou=dict(eps=1e-12),
    ),
    train_cfg=dict(
        assigner=dict(
            type='ddetr_plugin.HungarianAssigner',
            match_costs=[
                dict(type='ddetr_plugin.FocalCost', weight=2.0),
                dict(type='ddetr_plugin.L1Cost', weight=5.0),
                dict(type='ddetr_plugin.GIoUCost', weight=2.0),
            ],
        )
    ),
)
