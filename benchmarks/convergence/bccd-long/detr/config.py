custom_hooks = [
    dict(type='ddetr_plugin.RandomStateHook'),
    dict(type='ddetr_plugin.TrainClockHook'),
    dict(type='ddetr_plugin.ForeignCheckpointHook'),
    dict(type='ddetr_plugin.BrokenPictureHook'),
    dict(type='ddetr_plugin.BadNumberHook'),
]
custom_imports = dict(
    allow_failed_imports=False, imports=[
        'ddetr_plugin',
    ])
data_root = 'data/demo/'
default_hooks = dict(
    checkpoint=dict(
        by_epoch=False,
        interval=400,
        max_keep_ckpts=1,
        rule='greater',
        save_best=None,
        type='ddetr_plugin.AtomicCheckpointHook'),
    logger=dict(interval=50, log_metric_by_epoch=False, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(type='DetVisualizationHook'))
default_scope = 'mmdet'
dropout = 0.0
embed_dims = 128
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
eval_interval = 400
feedforward_channels = 512
ffn = dict(
    embed_dims=128,
    feedforward_channels=512,
    ffn_drop=0.0,
    type='ddetr_plugin.FeedForward')
launcher = 'none'
load_from = None
log_level = 'INFO'
log_processor = dict(by_epoch=False, type='LogProcessor', window_size=50)
max_iters = 2000
metainfo = dict(classes=(
    '0',
    '1',
    '2',
    '3',
    '4',
    '5',
    '6',
    '7',
    '8',
    '9',
))
model = dict(
    backbone=dict(
        frozen_stages=3,
        norm_eval=True,
        out_indices=(5, ),
        pretrained=True,
        type='ddetr_plugin.EfficientNetLite0'),
    bbox_head=dict(
        embed_dims=128,
        loss_bbox=dict(loss_weight=5.0, type='L1Loss'),
        loss_cls=dict(
            bg_cls_weight=0.1,
            class_weight=1.0,
            loss_weight=1.0,
            type='CrossEntropyLoss',
            use_sigmoid=False),
        loss_iou=dict(loss_weight=2.0, type='GIoULoss'),
        num_classes=3,
        type='DETRHead'),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            127.0,
            127.0,
            127.0,
        ],
        pad_size_divisor=1,
        std=[
            128.0,
            128.0,
            128.0,
        ],
        type='DetDataPreprocessor'),
    decoder=dict(
        layer_cfg=dict(
            cross_attn_cfg=dict(
                batch_first=True, dropout=0.0, embed_dims=128, num_heads=8),
            ffn_cfg=dict(
                act_cfg=dict(inplace=True, type='ReLU'),
                embed_dims=128,
                feedforward_channels=512,
                ffn_drop=0.0,
                num_fcs=2),
            self_attn_cfg=dict(
                batch_first=True, dropout=0.0, embed_dims=128, num_heads=8)),
        num_layers=3,
        return_intermediate=True),
    encoder=dict(
        layer_cfg=dict(
            ffn_cfg=dict(
                act_cfg=dict(inplace=True, type='ReLU'),
                embed_dims=128,
                feedforward_channels=512,
                ffn_drop=0.0,
                num_fcs=2),
            self_attn_cfg=dict(
                batch_first=True, dropout=0.0, embed_dims=128, num_heads=8)),
        num_layers=2),
    neck=dict(
        act_cfg=None,
        in_channels=[
            320,
        ],
        kernel_size=1,
        norm_cfg=None,
        num_outs=1,
        out_channels=128,
        type='ChannelMapper'),
    num_queries=60,
    positional_encoding=dict(normalize=True, num_feats=64),
    test_cfg=dict(max_per_img=60),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type='ClassificationCost', weight=1.0),
                dict(box_format='xywh', type='BBoxL1Cost', weight=5.0),
                dict(iou_mode='giou', type='IoUCost', weight=2.0),
            ],
            type='HungarianAssigner')),
    type='DETR')
model_wrapper_cfg = dict(
    broadcast_buffers=False,
    gradient_as_bucket_view=True,
    static_graph=True,
    type='MMDistributedDataParallel')
ms_deform_attn = dict(
    embed_dims=128,
    num_heads=8,
    num_levels=4,
    num_points=4,
    type='ddetr_plugin.MSDeformAttn')
num_classes = 10
num_decoder_layers = 3
num_encoder_layers = 2
num_heads = 8
num_levels = 4
num_points = 4
num_queries = 60
optim_wrapper = dict(
    clip_grad=dict(max_norm=0.1, norm_type=2),
    constructor='ddetr_plugin.MergedGroupsConstructor',
    optimizer=dict(fused=True, lr=0.0001, type='AdamW', weight_decay=0.0001),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.4))),
    type='OptimWrapper')
param_scheduler = [
    dict(begin=0, by_epoch=False, end=100, start_factor=0.01, type='LinearLR'),
    dict(
        T_max=3900,
        begin=100,
        by_epoch=False,
        end=4000,
        eta_min_ratio=0.01,
        type='CosineAnnealingLR'),
]
randomness = dict(seed=0)
resume = False
scale = (
    192,
    192,
)
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=8,
    dataset=dict(
        ann_file='data/bccd/annotations/instances_val.json',
        data_prefix=dict(img='data/bccd/images/'),
        data_root='',
        metainfo=dict(classes=(
            'RBC',
            'WBC',
            'Platelets',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                160,
                160,
            ), type='Resize'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    drop_last=False,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(
    ann_file='data/bccd/annotations/instances_val.json',
    metric='bbox',
    type='CocoMetric')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(
        192,
        192,
    ), type='Resize'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
        type='PackDetInputs'),
]
train_cfg = dict(max_iters=4000, type='IterBasedTrainLoop', val_interval=400)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        ann_file='data/bccd/annotations/instances_train.json',
        data_prefix=dict(img='data/bccd/images/'),
        data_root='',
        filter_cfg=dict(filter_empty_gt=False),
        metainfo=dict(classes=(
            'RBC',
            'WBC',
            'Platelets',
        )),
        pipeline=[
            dict(
                load=dict(type='LoadImageFromFile'),
                max_broken=10,
                type='ddetr_plugin.LoadImageChecked'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(keep_ratio=True, scale=(
                160,
                160,
            ), type='Resize'),
            dict(prob=0.5, type='RandomFlip'),
            dict(type='PackDetInputs'),
        ],
        type='CocoDataset'),
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=True, type='InfiniteSampler'))
train_pipeline = [
    dict(
        load=dict(type='LoadImageFromFile'),
        max_broken=10,
        type='ddetr_plugin.LoadImageChecked'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(keep_ratio=True, scale=(
        192,
        192,
    ), type='Resize'),
    dict(type='PackDetInputs'),
]
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=8,
    dataset=dict(
        ann_file='data/bccd/annotations/instances_val.json',
        data_prefix=dict(img='data/bccd/images/'),
        data_root='',
        metainfo=dict(classes=(
            'RBC',
            'WBC',
            'Platelets',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                160,
                160,
            ), type='Resize'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    drop_last=False,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(
    ann_file='data/bccd/annotations/instances_val.json',
    metric='bbox',
    type='CocoMetric')
vis_backends = [
    dict(type='ddetr_plugin.LenientVisBackend'),
]
visualizer = dict(
    name='visualizer',
    type='DetLocalVisualizer',
    vis_backends=[
        dict(type='ddetr_plugin.LenientVisBackend'),
    ])
