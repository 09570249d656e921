"""COCO 2017 with instance masks: `coco_detection.py`, masks loaded and evaluated."""

_base_ = './coco_detection.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].update(with_mask=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
