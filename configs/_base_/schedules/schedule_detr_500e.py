"""DETR's long recipe: 500 epochs, learning rate divided by 10 after 400 (arXiv:2005.12872, 4)."""

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=500, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4, fused=True),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}),
)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=500, by_epoch=True, milestones=[400], gamma=0.1)
]

# lr belongs to 16 GPUs x 4 pictures, the batch of DETR's paper.
auto_scale_lr = dict(enable=False, base_batch_size=64)
