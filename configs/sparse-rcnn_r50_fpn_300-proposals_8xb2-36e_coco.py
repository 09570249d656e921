"""Sparse R-CNN with 300 proposals, 36 epochs: mmdet's own recipe. Needs full mmcv."""

_base_ = 'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py'

custom_imports = dict(imports=['ddetr_plugin'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(type='ddetr_plugin.AtomicCheckpointHook'))
custom_hooks = [
    dict(type='ddetr_plugin.RandomStateHook'),
    dict(type='ddetr_plugin.ForeignCheckpointHook'),
    dict(type='ddetr_plugin.BrokenPictureHook'),
    dict(type='ddetr_plugin.BadNumberHook'),
]
