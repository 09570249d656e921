"""COCO 2017 panoptic: `coco_detection.py`, every segment an instance, evaluated by PQ.

Classes are those of CocoPanopticDataset: 80 things, then 53 kinds of stuff.
"""

_base_ = './coco_detection.py'

num_things = 80
num_stuff = 53

load_segments = dict(
    type='ddetr_plugin.LoadPanopticInstances',
    num_things=num_things,
    backend_args=_base_.backend_args,
)
train_pipeline = _base_.train_pipeline
train_pipeline[1] = load_segments
test_pipeline = _base_.test_pipeline
test_pipeline[2] = load_segments

train_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(seg='annotations/panoptic_train2017/'),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(seg='annotations/panoptic_val2017/'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader

val_evaluator = dict(
    _delete_=True,
    type='ddetr_plugin.CocoPanopticMetric',
    ann_file=_base_.data_root + 'annotations/panoptic_val2017.json',
    seg_prefix=_base_.data_root + 'annotations/panoptic_val2017/',
    backend_args=_base_.backend_args,
)
test_evaluator = val_evaluator
