"""Logging, checkpoints and environment, as in mmdet."""

default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Complete at any moment, whatever happens to the process or the disk.
    checkpoint=dict(
        type='ddetr_plugin.AtomicCheckpointHook', interval=1, max_keep_ckpts=3, save_best='auto'
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)

custom_hooks = [
    # Checkpoints hold the random state: with a seed, a resumed run equals an uninterrupted one.
    dict(type='ddetr_plugin.RandomStateHook'),
    # load_from may name weights of other implementations, and for other classes.
    dict(type='ddetr_plugin.ForeignCheckpointHook'),
    # Broken pictures of all processes are added up; in tests the first one stops.
    dict(type='ddetr_plugin.BrokenPictureHook'),
    # A NaN or an infinity stops the step: with the name of the tensor, and its pictures saved.
    dict(type='ddetr_plugin.BadNumberHook'),
]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

# On several processes. Every parameter gets a gradient in every step, with and without ground
# truth, so that reductions can be planned once and overlap the backward pass.
model_wrapper_cfg = dict(
    type='MMDistributedDataParallel',
    broadcast_buffers=False,
    static_graph=True,
    gradient_as_bucket_view=True,
)

# A full disk costs logged numbers, not the training.
vis_backends = [dict(type='ddetr_plugin.LenientVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

log_level = 'INFO'
load_from = None
resume = False
