"""Panoptic models from a config through our tools: training, PQ, and a missing panopticapi."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from mask_cases import mask_head_config
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from panoptic_cases import (
    CLASSES,
    METAINFO,
    NUM_CLASSES,
    NUM_THINGS,
    make_scene,
    quality_by_definition,
    write_scenes,
)

from ddetr_plugin.compat import MissingPanopticAPIError, require_panopticapi
from ddetr_plugin.registry import MODELS

REPO = Path(__file__).resolve().parents[1]
CONFIG = REPO / 'configs' / 'deformable-detr-panoptic_r50_16xb2-50e_coco.py'
MASKS = REPO / 'configs' / 'deformable-detr-masks_r50_16xb2-50e_coco.py'


def tool(name):
    """The module of a script in tools/, which is not a package."""
    spec = importlib.util.spec_from_file_location(f'{name}_tool', REPO / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def panoptic_job(tiny_job, file, **changes):
    """`tiny_job` on scenes that `write_scenes` wrote, with the transforms of the COCO config."""
    coco = Config.fromfile(CONFIG)
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    loaders = {}
    for split in ('train', 'val', 'test'):
        dataset = coco[f'{split}_dataloader'].dataset
        load = next(s for s in dataset.pipeline if s.type == 'ddetr_plugin.LoadPanopticInstances')
        prefix = dict(img=str(file.parent / 'images'), seg=str(file.parent / 'segments'))
        changed = dict(
            type=dataset.type,
            ann_file=str(file),
            data_prefix=prefix,
            metainfo=METAINFO,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(load, num_things=NUM_THINGS),
                dict(type='Resize', scale=(64, 48), keep_ratio=True),
                dict(type='RandomFlip', prob=0.5 if split == 'train' else 0.0),
                dict(type='PackDetInputs', meta_keys=meta_keys),
            ],
        )
        loaders |= {f'{split}_dataloader.dataset.{key}': value for key, value in changed.items()}
    paths = dict(ann_file=str(file), seg_prefix=str(file.parent / 'segments'))
    evaluator = dict(coco.val_evaluator, **paths, _delete_=True)
    return tiny_job(
        **loaders,
        **{
            'model.backbone.out_indices': (0, 1, 2, 3),
            'model.bbox_head.num_classes': NUM_CLASSES,
            'model.mask_head': mask_head_config(
                type='ddetr_plugin.PanopticMaskHead',
                embed_dims=16,
                in_channels=[8, 16, 32],
                num_things=NUM_THINGS,
                num_classes=NUM_CLASSES,
                threshold=0.3,
            ),
            'val_evaluator': evaluator,
            'test_evaluator': evaluator,
            'default_hooks.checkpoint': coco.default_hooks.checkpoint,
            **changes,
        },
    )


def test_exp(tiny_job, tmp_path):
    import time
    from mmengine.registry import DATASETS
    file = write_scenes(tmp_path / 'data', [make_scene(s) for s in range(2)])
    path = panoptic_job(tiny_job, file)
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmdet'):
        ds = DATASETS.build(config.test_dataloader.dataset)
        samples = [ds[i] for i in range(2)]
        for lr, ed in ((4e-3, 0),):
            torch.manual_seed(0)
            m = config.model
            model = MODELS.build(m)
            model.init_weights()
            print(sum(p.numel() for p in model.parameters()))
            batch = dict(inputs=[s['inputs'] for s in samples], data_samples=[s['data_samples'] for s in samples])
            opt = torch.optim.AdamW(model.parameters(), lr=lr)
            import copy
            t = time.process_time()
            for step in range(301):
                model.train()
                losses = model(**model.data_preprocessor(copy.deepcopy(batch), True), mode='loss')
                opt.zero_grad(); sum(losses.values()).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                opt.step()
                if step % 50 == 0:
                    model.eval()
                    with torch.no_grad():
                        res = model.test_step(copy.deepcopy(batch))
                    from test_panoptic_data import merged
                    q = [quality_by_definition(r.pred_panoptic_seg.sem_seg[0].numpy(), merged(s, 2, 4).numpy(), 4) for r, s in zip(res, batch['data_samples'])]
                    print(lr, step, time.process_time()-t, {k: round(v.item(), 2) for k, v in losses.items() if not k.startswith('d0')}, q, [r.pred_instances.scores[:6].numpy().round(2).tolist() for r in res][0])
