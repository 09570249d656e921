"""Evaluation with the official resizing and COCO's own maxDets, to compare converted weights."""

_base_ = './deformable-detr_r50_16xb2-50e_coco.py'

test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='ddetr_plugin.OfficialResize', scale=(1333, 800)),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_evaluator = dict(proposal_nums=(1, 10, 100))
