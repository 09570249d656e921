"""A folder as a reader of the documentation has it."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ddetr_plugin.apis import find_config
from ddetr_plugin.registry import MODELS

DEMO_CHECKPOINT = 'best_coco_bbox_mAP_iter_2000.pth'


def small_coco_config():
    """A config like the COCO ones, with their 80 classes, for images of a few pixels."""
    config = Config.fromfile(find_config('deformable-detr_r50_16xb2-50e_coco'))
    changes = dict(
        backbone=dict(depth=18, init_cfg=None),
        neck=dict(in_channels=[128, 256, 512]),
        encoder=dict(num_layers=1),
        decoder=dict(num_layers=1),
        bbox_head=dict(num_layers=1),
    )
    config.merge_from_dict(dict(model=changes))
    for step in config.test_dataloader.dataset.pipeline:
        if step['type'] == 'Resize':
            step['scale'] = (96, 96)
    return config


def save_weights(config, path):
    """Random weights that fit a config, with the names of its classes as the Runner saves them."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    classes = config.get('metainfo', {}).get('classes') or tuple(map(str, range(80)))
    content = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes)))
    torch.save(content, path)


@pytest.fixture(scope='session')
def user_folder(tmp_path_factory, tiny_coco):
    """What the pages name: images, a data set, what a demo leaves, a checkpoint for COCO."""
    folder = tmp_path_factory.mktemp('user')
    (folder / 'images').mkdir()
    rng = np.random.default_rng(0)
    for target in ('images/a.jpg', 'images/b.jpg', 'image.jpg'):
        cv2.imwrite(str(folder / target), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    for target in ('path/to/folder', 'data/demo'):
        shutil.copytree(tiny_coco.root, folder / target)

    work_dir = folder / 'work_dirs' / 'demo'
    work_dir.mkdir(parents=True)
    config = Config.fromfile(find_config('digits'))
    config.model.backbone.pretrained = False
    config.dump(work_dir / 'digits.py')
    save_weights(config, work_dir / DEMO_CHECKPOINT)

    config = small_coco_config()
    config.dump(folder / 'coco.py')
    save_weights(config, folder / 'checkpoint.pth')
    return folder
