"""COCO 2017 with the augmentation of DETR (arXiv:2005.12872, A.4), from `data/coco/`."""

dataset_type = 'CocoDataset'
data_root = 'data/coco/'
backend_args = None

short_sides = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)

train_pipeline = [
    # Others are taken in place of the first broken pictures; then the training stops.
    dict(
        type='ddetr_plugin.LoadImageChecked',
        load=dict(type='LoadImageFromFile', backend_args=backend_args),
        max_broken=10,
    ),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [
                dict(
                    type='RandomChoiceResize',
                    scales=[(side, 1333) for side in short_sides],
                    keep_ratio=True,
                ),
            ],
            [
                # The first resize only bounds the crop: the long side is not limited.
                dict(
                    type='RandomChoiceResize',
                    scales=[(400, 4200), (500, 4200), (600, 4200)],
                    keep_ratio=True,
                ),
                dict(
                    type='RandomCrop',
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                dict(
                    type='RandomChoiceResize',
                    scales=[(side, 1333) for side in short_sides],
                    keep_ratio=True,
                ),
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=backend_args),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

# Batch 32 in all, as published: 16 GPUs with 2 pictures each.
train_dataloader = dict(
    batch_size=2,
    # A sample takes 5 ms of one core: two workers, each two batches ahead, make more than a
    # hundred batches a second.
    num_workers=2,
    persistent_workers=True,
    # With data_preprocessor.non_blocking: copies to a GPU overlap its work. Without a GPU torch
    # warns that this does nothing.
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
        backend_args=backend_args,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    pin_memory=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type='ddetr_plugin.CocoMetric',
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric='bbox',
    format_only=False,
    backend_args=backend_args,
)
test_evaluator = val_evaluator
