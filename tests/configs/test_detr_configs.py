"""DETR, DETR-DC5 and DETR-DC5+: the recipes, and small versions that train, resume and predict."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from ddetr_plugin.cli import run_command
from ddetr_plugin.config_files import find_config
from ddetr_plugin.registry import MODELS

REPO = Path(__file__).resolve().parents[2]
DETR = 'detr_r50_16xb4-500e_coco.py'
DC5 = 'detr_r50-dc5_16xb4-500e_coco.py'
DC5_50 = 'detr_r50-dc5_16xb4-50e_coco.py'
PLUS = 'detr-plus_r50-dc5_16xb4-50e_coco.py'
# Trainable parameters with 80 classes. The official DETR prints 41,302,368, of which 11 classes
# that have no pictures take 11 * 257.
PARAMETERS = dict.fromkeys((DETR, DC5, DC5_50), 41_302_368 - 11 * 257)
# 200 more queries, and no class for "no object".
PARAMETERS[PLUS] = PARAMETERS[DETR] + 200 * 256 - 257
ROWS = tuple(PARAMETERS)


def load(name):
    return Config.fromfile(find_config(name))


def build(config, device='cpu'):
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device(device):
        return MODELS.build(copy.deepcopy(config.model))


def small(name, **changes):
    """The model of a config, narrow and of 1 + 2 layers, for three classes, nothing loaded."""
    config = load(name)
    attention = dict(embed_dims=16, num_heads=2)
    layer = dict(self_attn_cfg=attention, ffn_cfg=dict(embed_dims=16, feedforward_channels=32))
    model = dict(
        num_queries=20,
        backbone=dict(base_channels=8, init_cfg=None),
        neck=dict(in_channels=[256], out_channels=16),
        encoder=dict(num_layers=1, layer_cfg=layer),
        decoder=dict(num_layers=2, layer_cfg=dict(cross_attn_cfg=attention, **layer)),
        positional_encoding=dict(num_feats=8),
        bbox_head=dict(num_classes=3, embed_dims=16),
        test_cfg=dict(max_per_img=10),
    )
    config.merge_from_dict(dict(model=model))
    config.merge_from_dict(dict(model=changes))
    return config


@pytest.mark.parametrize('name', ROWS)
def test_the_rows_have_the_numbers_of_parameters_of_the_official_detr(name):
    model = build(load(name), 'meta')
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == PARAMETERS[name]


@pytest.mark.parametrize(
    ('name', 'epochs', 'milestone'), [(DETR, 500, 400), (DC5, 500, 400), (DC5_50, 50, 40)]
)
def test_the_recipe_is_that_of_detr(name, epochs, milestone):
    config = load(name)
    assert config.train_cfg.max_epochs == epochs
    (schedule,) = config.param_scheduler
    assert (schedule.end, schedule.milestones, schedule.gamma) == (epochs, [milestone], 0.1)
    assert config.train_dataloader.batch_size * 16 == config.auto_scale_lr.base_batch_size == 64
    assert config.optim_wrapper.clip_grad.max_norm == 0.1
    model = build(config, 'meta')
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    rates = {
        id(parameter): (round(group['lr'], 9), group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = 1e-5 if key.startswith('backbone') else 1e-4
            assert rates[id(parameter)] == (expected, 1e-4), key


def test_dc5_plus_differs_from_dc5_in_queries_losses_and_costs_only():
    def settings(name):
        config = load(name).to_dict()
        model = config['model']
        removed = [model.pop('train_cfg'), model.pop('num_queries')]
        removed += [model['bbox_head'].pop(key) for key in ('type', 'loss_cls', 'loss_iou')]
        return config, removed

    (plain, _), (plus, changed) = settings(DC5_50), settings(PLUS)
    assert plain == plus
    assert changed[1:3] == [300, 'ddetr_plugin.FocalDETRHead']


@pytest.mark.parametrize('name', [DC5, DC5_50, PLUS])
def test_dc5_has_stride_16_and_dilates_from_the_second_block_on(name):
    model = build(small(name))
    (features,) = model.backbone(torch.randn(1, 3, 64, 96))
    assert features.shape[-2:] == (4, 6)
    assert [block.conv2.dilation for block in model.backbone.layer4] == [(1, 1), (2, 2), (2, 2)]
    (strided,) = build(small(DETR)).backbone(torch.randn(1, 3, 64, 96))
    assert strided.shape[-2:] == (2, 3)


@pytest.mark.parametrize('name', ROWS)
@pytest.mark.parametrize('counts', [(3, 2), (0, 0)])
def test_every_parameter_learns_with_and_without_ground_truth(name, counts):
    """What static_graph of the distributed wrapper relies on."""
    from builders import batch

    model = build(small(name))
    model.init_weights()
    inputs, samples = batch(gts=counts, num_classes=3)
    losses = model.loss(inputs, samples)
    assert all(loss.isfinite() for loss in losses.values())
    assert set(losses) == {
        f'{prefix}loss_{kind}' for prefix in ('', 'd0.') for kind in ('cls', 'bbox', 'iou')
    }
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize('name', [DETR, PLUS])
def test_a_row_trains_resumes_with_the_same_bits_and_predicts(name, tiny_job, tmp_path, capsys):
    model = small(name).model.to_dict()
    path = tiny_job(
        model=dict(_delete_=True, **model),
        train_cfg=dict(max_epochs=2, val_begin=3),
        train_dataloader=dict(dataset=dict(indices=4)),
        test_dataloader=dict(dataset=dict(indices=2)),
    )
    through, stopped = tmp_path / 'through', tmp_path / 'stopped'
    run_command('train', [str(path), '--work-dir', str(through)])
    options = ['--work-dir', str(stopped), '--resume', str(through / 'epoch_1.pth')]
    run_command('train', [str(path), *options])
    first, second = (
        torch.load(folder / 'epoch_2.pth')['state_dict'] for folder in (through, stopped)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(weight.isfinite().all() for weight in first.values())
    capsys.readouterr()
    run_command(
        'test', [str(path), str(through / 'epoch_2.pth'), '--work-dir', str(tmp_path / 'test')]
    )
    assert 'Average Precision' in capsys.readouterr().out
