"""Detectors that tests of this folder share."""

import pytest


@pytest.fixture(scope='session')
def tiny_detector(tiny_coco):
    """A tiny Deformable DETR with random weights, and its config."""
    from builders import build, tiny_config
    from mmengine.config import Config

    from ddetr_plugin.apis import Detector

    backbone = dict(base_channels=8, frozen_stages=-1)
    model = tiny_config(
        embed_dims=16,
        backbone=backbone,
        neck=dict(in_channels=[16, 32, 64]),
        bbox_head=dict(num_classes=3),
    )
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(64, 48), keep_ratio=True),
        dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        ),
    ]
    dataset = dict(type='CocoDataset', pipeline=pipeline, metainfo=dict(classes=tiny_coco.classes))
    config = Config(dict(default_scope='mmdet', model=model, test_dataloader=dict(dataset=dataset)))
    return Detector.from_model(build(model), config)


@pytest.fixture
def blob_detector():
    """See blob_detector.py."""
    from blob_detector import BlobDetector, blob_config

    from ddetr_plugin.apis import Detector

    def make(**options):
        config = blob_config(**options)
        settings = {k: v for k, v in config.model.items() if k != 'type'}
        return Detector.from_model(BlobDetector(**settings), config)

    return make
