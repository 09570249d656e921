"""A user's own pictures, `make demo DATA=folder`. Twenty minutes on two CPU cores.

The tool fills in folder, files and classes.
"""

_base_ = './digits.py'

max_iters = 1400
eval_interval = 350
num_queries = 100

train_pipeline = [
    dict(
        type='ddetr_plugin.LoadImageChecked',
        load=dict(type='LoadImageFromFile'),
        max_broken=10,
    ),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoiceResize',
        scales=[(side, side) for side in (320, 352, 384, 416)],
        keep_ratio=True,
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

model = dict(query_head=dict(num_queries=num_queries))

# Upright pictures among upright ones: less padding.
train_dataloader = dict(
    batch_sampler=dict(type='AspectRatioBatchSampler'), dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(batch_size=4, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=max_iters, val_interval=eval_interval)
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
default_hooks = dict(checkpoint=dict(interval=eval_interval))
