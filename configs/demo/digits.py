"""The demo: digits on clutter, `make demo`. Ten minutes on two CPU cores."""

_base_ = [
    '../_base_/models/deformable_detr_refine_twostage_effnet_lite0.py',
    '../_base_/default_runtime.py',
]

data_root = 'data/demo/'
metainfo = dict(classes=tuple('0123456789'))
max_iters = 2000
eval_interval = 400
# Enlarged: the smallest digits are smaller than two cells of the finest level.
scale = (192, 192)

train_pipeline = [
    dict(
        type='ddetr_plugin.LoadImageChecked',
        load=dict(type='LoadImageFromFile'),
        max_broken=10,
    ),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
# Small batches: in short trainings the number of steps counts more than their smoothness.
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/'),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='ddetr_plugin.CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric='bbox',
)
test_evaluator = val_evaluator

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=eval_interval)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='ddetr_plugin.MergedGroupsConstructor',
    optimizer=dict(type='AdamW', lr=7e-4, weight_decay=1e-4, fused=True),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.4),
        }
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=50,
        end=max_iters,
        T_max=max_iters - 50,
        eta_min_ratio=0.01,
        by_epoch=False,
    ),
]

# Checkpoints hold the random state, so that a resumed run equals an uninterrupted one.
randomness = dict(seed=0)
custom_hooks = [
    dict(type='ddetr_plugin.RandomStateHook'),
    dict(type='ddetr_plugin.TrainClockHook'),
    dict(type='ddetr_plugin.ForeignCheckpointHook'),
    dict(type='ddetr_plugin.BrokenPictureHook'),
    dict(type='ddetr_plugin.BadNumberHook'),
]

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(
        type='ddetr_plugin.AtomicCheckpointHook',
        by_epoch=False,
        interval=eval_interval,
        max_keep_ckpts=1,
        save_best='coco/bbox_mAP',
        rule='greater',
    ),
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)
