"""Panoptic models from configs through our tools: training, PQ, and a missing panopticapi."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_cases import mask_head_config, masks_config
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from panoptic_cases import (
    METAINFO,
    NUM_CLASSES,
    NUM_THINGS,
    SKY,
    make_scene,
    quality_by_definition,
    write_scenes,
)

from ddetr_plugin.cli import run_command
from ddetr_plugin.compat import MissingPanopticAPIError, require_panopticapi
from ddetr_plugin.config_files import find_config
from ddetr_plugin.registry import MODELS

REPO = Path(__file__).resolve().parents[2]
CONFIG = find_config('deformable-detr-panoptic_r50_16xb2-50e_coco')


def small_model():
    """Of 32 channels; masks weigh more than in the paper, so that they are learnt in no time."""
    return masks_config(
        mask_head=mask_head_config(
            type='ddetr_plugin.PanopticMaskHead',
            in_channels=[16, 32, 64],
            num_things=NUM_THINGS,
            num_classes=NUM_CLASSES,
            threshold=0.3,
            loss_mask=dict(type='mmdet.FocalLoss', use_sigmoid=True, loss_weight=12.0),
            loss_dice=dict(type='mmdet.DiceLoss', naive_dice=True, eps=1.0, loss_weight=3.0),
        ),
        backbone=dict(
            base_channels=16, norm_cfg=dict(requires_grad=True), norm_eval=False, frozen_stages=-1
        ),
        neck=dict(in_channels=[32, 64, 128]),
        bbox_head=dict(num_classes=NUM_CLASSES),
    )


def panoptic_job(tiny_job, file, **changes):
    """`tiny_job` on what `write_scenes` wrote; loaded, evaluated and saved as the COCO config's."""
    coco = Config.fromfile(CONFIG)
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    loaders = {}
    for split in ('train', 'val', 'test'):
        dataset = coco[f'{split}_dataloader'].dataset
        load = next(s for s in dataset.pipeline if s.type == 'ddetr_plugin.LoadPanopticInstances')
        changed = dict(
            type=dataset.type,
            ann_file=str(file),
            data_prefix=dict(img=str(file.parent / 'images'), seg=str(file.parent / 'segments')),
            metainfo=METAINFO,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(load, num_things=NUM_THINGS),
                dict(type='Resize', scale=(64, 48), keep_ratio=True),
                dict(type='PackDetInputs', meta_keys=meta_keys),
            ],
        )
        loaders |= {f'{split}_dataloader.dataset.{key}': value for key, value in changed.items()}
    paths = dict(ann_file=str(file), seg_prefix=str(file.parent / 'segments'))
    # One for each split: mmengine takes `_delete_` out of what it merges.
    evaluators = {
        f'{split}_evaluator': dict(coco.val_evaluator, **paths, _delete_=True)
        for split in ('val', 'test')
    }
    settings = {
        'model': dict(small_model().to_dict(), _delete_=True),
        'default_hooks.checkpoint': coco.default_hooks.checkpoint,
        # mmengine keeps one visualizer of a name, which writes where the first run did.
        'visualizer.name': str(file),
    }
    return tiny_job(**(loaders | evaluators | settings | changes))


def coded(sample):
    """(h, w), the ground truth in mmdet's code."""
    whole = np.full(sample.ori_shape, NUM_CLASSES)
    instances = sample.gt_instances
    for i, (mask, label) in enumerate(zip(instances.masks.masks, instances.labels.tolist()), 1):
        whole[mask > 0] = label + 1000 * i
    return whole


def test_a_training_learns_the_maps_of_things_and_stuff(tiny_job, tmp_path):
    """One scene, 180 steps, from the command line; without validation it needs no panopticapi."""
    file = write_scenes(tmp_path / 'data', [make_scene(0)])
    loop = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=180)
    nothing = {
        f'{s}_{x}': None for s in ('val', 'test') for x in ('cfg', 'dataloader', 'evaluator')
    }
    optimizer = dict(type='AdamW', lr=2e-3)
    wrapper = dict(type='OptimWrapper', optimizer=optimizer, clip_grad=dict(max_norm=1.0))
    path = panoptic_job(
        tiny_job,
        file,
        **nothing,
        **{
            'train_cfg': loop,
            # mmengine sleeps between epochs, each of which would be one step.
            'train_dataloader.sampler.type': 'InfiniteSampler',
            'train_dataloader.batch_size': 1,
            'optim_wrapper': wrapper,
            'param_scheduler': None,
            'default_hooks.checkpoint': dict(by_epoch=False, interval=180),
        },
    )
    run_command('train', [str(path), '--work-dir', str(tmp_path / 'out')])
    config = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config.train_dataloader.dataset)
        data = dataset[0]
        model = MODELS.build(config.model).eval()
    model.load_state_dict(torch.load(tmp_path / 'out' / 'iter_180.pth')['state_dict'])
    with torch.no_grad():
        (result,) = model.test_step({key: [value] for key, value in data.items()})
    predicted = result.pred_panoptic_seg.sem_seg[0].numpy()
    # Of six small trainings the least had 41; before a training it is 0.
    assert quality_by_definition(predicted, coded(data['data_samples']), NUM_CLASSES) > 30
    assert np.median(predicted[:8]) == SKY


def test_the_tools_validate_save_the_best_and_test_by_panoptic_quality(tiny_job, tmp_path):
    pytest.importorskip('panopticapi', reason='panopticapi is not installed')
    file = write_scenes(tmp_path / 'data', [make_scene(seed, crowd=True) for seed in range(3)])
    path = panoptic_job(tiny_job, file, log_level='INFO', **{'train_cfg.max_epochs': 1})
    out = tmp_path / 'out'
    run_command('train', [str(path), '--work-dir', str(out)])
    (best,) = out.glob('best_coco_panoptic_PQ_epoch_1.pth')
    (log,) = out.glob('*/*.log')
    text = log.read_text()
    assert 'Panoptic Evaluation Results' in text and 'coco_panoptic/PQ_st' in text
    command = [str(path), str(best), '--work-dir', str(tmp_path / 'test'), '--show-dir', 'drawn']
    run_command('test', command)
    (scores,) = (tmp_path / 'test').glob('*/*.json')
    (logged,) = (
        entry
        for file in out.glob('*/vis_data/scalars.json')
        for entry in map(json.loads, file.read_text().splitlines())
        if 'coco_panoptic/PQ' in entry
    )
    quality = json.loads(scores.read_text())['coco_panoptic/PQ']
    assert 0 <= quality == pytest.approx(logged['coco_panoptic/PQ'])
    assert len(list((tmp_path / 'test').glob('*/drawn/*.jpg'))) == 3


@pytest.fixture
def no_panopticapi(monkeypatch):
    for name in ('panopticapi', 'panopticapi.evaluation', 'panopticapi.utils'):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_panopticapi_the_tools_say_at_once_how_to_install_it(
    no_panopticapi, tiny_job, tmp_path, capsys
):
    file = write_scenes(tmp_path / 'data', [make_scene(0)])
    path = panoptic_job(tiny_job, file)
    weights = tmp_path / 'weights.pth'
    weights.touch()
    for name, arguments in (('train', []), ('test', [str(weights)])):
        with pytest.raises(SystemExit) as end:
            run_command(name, [str(path), *arguments, '--work-dir', str(tmp_path / 'out')])
        message = capsys.readouterr().err
        assert end.value.code == 2
        assert "needs COCO's panopticapi (CocoPanopticMetric)" in message
        assert 'pip install --no-deps panopticapi-lite' in message
    assert not (tmp_path / 'out').exists()


def test_panopticapi_is_asked_for_where_something_needs_it_and_nowhere_else(no_panopticapi):
    require_panopticapi(
        dict(val_evaluator=dict(type='CocoMetric'), classes=('CocoPanopticMetric',))
    )
    metric = type('CocoPanopticMetric', (), {})
    for config in (
        dict(val_evaluator=[dict(type='CocoMetric'), dict(type='mmdet.CocoPanopticMetric')]),
        dict(val_evaluator=dict(type=metric)),
        dict(train_dataloader=dict(dataset=dict(pipeline=[dict(type='LoadPanopticAnnotations')]))),
    ):
        with pytest.raises(MissingPanopticAPIError, match='Install it: pip install'):
            require_panopticapi(config)
