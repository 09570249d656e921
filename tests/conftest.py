"""What all tests share: fixed seeds, a tiny COCO folder, and when a missing op is a failure."""

import gc
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

CLASSES = ('square', 'bar', 'post')


class TinyCoco(NamedTuple):
    """A COCO-format folder: `root` holds `annotations` (a file) and `images` (a folder)."""

    root: Path
    annotations: Path
    images: Path
    classes: tuple


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test starts from the same random state, whichever tests ran before."""
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_visualizers_of_other_tests():
    """mmengine's hooks draw with the visualizer that was made last in the process."""
    yield
    module = sys.modules.get('mmengine.visualization.visualizer')
    if module is not None:
        module.Visualizer._instance_dict.clear()


@pytest.fixture(autouse=True, scope='session')
def plain_configs():
    """Configs are written as they are: a short training spends most of its time on their looks."""
    with pytest.MonkeyPatch.context() as patch:
        # The operator's tests need no mmengine.
        if importlib.util.find_spec('mmengine'):
            module = importlib.import_module('mmengine.config.config')
            patch.setattr(module, 'FormatCode', lambda text, **style: (text, True))
        yield


@pytest.fixture(scope='session')
def tiny_coco(tmp_path_factory):
    """Eight noisy 64 x 48 pictures with one to three filled rectangles each, three classes."""
    import cv2  # here, so that the operator's tests run where neither it nor mmdet is installed

    root = tmp_path_factory.mktemp('tiny_coco')
    images_dir = root / 'images'
    images_dir.mkdir()
    rng = np.random.default_rng(0)
    shapes = ((16, 16), (24, 8), (8, 24))  # (width, height) in pixels, one per class
    images, annotations = [], []
    for image_id in range(1, 9):
        picture = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        for label in rng.permutation(3)[: 1 + image_id % 3]:
            width, height = shapes[label]
            x = int(rng.integers(0, 64 - width))
            y = int(rng.integers(0, 48 - height))
            picture[y : y + height, x : x + width, label] = 230
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': int(label) + 1,
                    'bbox': [x, y, width, height],
                    'area': width * height,
                    'iscrowd': 0,
                }
            )
        name = f'{image_id:02d}.png'
        cv2.imwrite(str(images_dir / name), picture)
        images.append({'id': image_id, 'file_name': name, 'width': 64, 'height': 48})
    categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES, 1)]
    annotation_file = root / 'annotations.json'
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    annotation_file.write_text(json.dumps(content))
    return TinyCoco(root, annotation_file, images_dir, CLASSES)


@pytest.fixture
def tiny_job(tmp_path, tiny_coco):
    """Writes complete config files: a tiny Deformable DETR, three epochs on `tiny_coco`.

    Call it with a file name and config values to change; it returns the path of the file. BN is
    trained, dropout and flips are on: everything that carries state or draws random numbers.
    """
    from builders import tiny_config
    from mmengine.config import Config

    def dataloader(shuffle):
        flip = [dict(type='RandomFlip', prob=0.5)] if shuffle else []
        return dict(
            batch_size=2,
            num_workers=0,
            persistent_workers=False,
            sampler=dict(type='DefaultSampler', shuffle=shuffle),
            dataset=dict(
                type='CocoDataset',
                ann_file=str(tiny_coco.annotations),
                data_prefix=dict(img=str(tiny_coco.images)),
                metainfo=dict(classes=tiny_coco.classes),
                test_mode=not shuffle,
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='LoadAnnotations', with_bbox=True),
                    dict(type='Resize', scale=(64, 48), keep_ratio=True),
                    *flip,
                    dict(
                        type='PackDetInputs',
                        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
                    ),
                ],
            ),
        )

    def write(name='tiny.py', **changes):
        evaluator = dict(
            type='ddetr_plugin.CocoMetric', ann_file=str(tiny_coco.annotations), metric='bbox'
        )
        model = tiny_config(
            embed_dims=16,
            dropout=0.1,
            backbone=dict(
                base_channels=8,
                frozen_stages=-1,
                norm_cfg=dict(requires_grad=True),
                norm_eval=False,
            ),
            neck=dict(in_channels=[16, 32, 64]),
            bbox_head=dict(num_classes=3),
        )
        config = Config(
            dict(
                default_scope='mmdet',
                custom_imports=dict(imports=['ddetr_plugin'], allow_failed_imports=False),
                work_dir=str(tmp_path / 'work'),
                experiment_name=f'{tmp_path.name}-{name}',
                model=model,
                train_dataloader=dataloader(shuffle=True),
                val_dataloader=dataloader(shuffle=False),
                test_dataloader=dataloader(shuffle=False),
                val_evaluator=evaluator,
                test_evaluator=evaluator,
                train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1),
                val_cfg=dict(type='ValLoop'),
                test_cfg=dict(type='TestLoop'),
                optim_wrapper=dict(
                    type='OptimWrapper',
                    optimizer=dict(type='AdamW', lr=1e-3),
                    clip_grad=dict(max_norm=0.1),
                ),
                param_scheduler=[dict(type='MultiStepLR', by_epoch=True, milestones=[1])],
                auto_scale_lr=dict(enable=False, base_batch_size=32),
                default_hooks=dict(
                    checkpoint=dict(
                        type='ddetr_plugin.AtomicCheckpointHook', interval=1, save_best='auto'
                    ),
                    visualization=dict(type='DetVisualizationHook'),
                ),
                custom_hooks=[
                    dict(type='ddetr_plugin.RandomStateHook'),
                    dict(type='ddetr_plugin.ForeignCheckpointHook'),
                ],
                visualizer=dict(
                    type='DetLocalVisualizer',
                    vis_backends=[dict(type='ddetr_plugin.LenientVisBackend')],
                    name='visualizer',
                ),
                randomness=dict(seed=0),
                log_level='WARNING',
            )
        )
        config.merge_from_dict(changes)
        path = tmp_path / name
        config.dump(path)
        return path

    return write


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What was imported stays: mmengine collects garbage for every data set that it builds.

    Collecting it meanwhile would take a tenth of the time of the imports.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def _require_native(report):
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ''
    required = os.environ.get('DDETR_REQUIRE_NATIVE') == '1'
    if required and report.skipped and 'native' in reason.lower():
        report.outcome = 'failed'
        report.longrepr = f'{reason}\n(a failure because DDETR_REQUIRE_NATIVE=1)'
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """DDETR_REQUIRE_NATIVE=1 turns skips for want of the native op into failures."""
    return _require_native((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """The same for a whole file that skips itself."""
    return _require_native((yield))
