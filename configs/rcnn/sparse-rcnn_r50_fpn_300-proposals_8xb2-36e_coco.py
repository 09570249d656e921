"""Sparse R-CNN with 300 proposals, 36 epochs: mmdet's own recipe. Needs full mmcv."""

_base_ = 'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py'

custom_imports = dict(imports=['ddetr_plugin'], allow_failed_imports=False)

train_pipeline = [
    dict(type='ddetr_plugin.LoadImageChecked', load=_base_.train_pipeline[0], max_broken=10),
    *_base_.train_pipeline[1:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

# As in _base_/default_runtime.py, which cannot be a second base beside mmdet's own.
default_hooks = dict(
    checkpoint=dict(type='ddetr_plugin.AtomicCheckpointHook', max_keep_ckpts=3, save_best='auto')
)
custom_hooks = [
    dict(type='ddetr_plugin.RandomStateHook'),
    dict(type='ddetr_plugin.ForeignCheckpointHook'),
    dict(type='ddetr_plugin.BrokenPictureHook'),
    dict(type='ddetr_plugin.BadNumberHook'),
]
vis_backends = [dict(type='ddetr_plugin.LenientVisBackend')]
visualizer = dict(vis_backends=vis_backends)
val_evaluator = dict(type='ddetr_plugin.CocoMetric')
test_evaluator = dict(type='ddetr_plugin.CocoMetric')
