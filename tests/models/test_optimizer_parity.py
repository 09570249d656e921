"""A training step against the official recipe, written down in plain torch."""

import copy

import pytest
import torch
from builders import VARIANTS, batch, build, tiny_config
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from ddetr_plugin.checkpoints import detect_architecture
from ddetr_plugin.checkpoints.names.table import module_names, translate

CONFIG = 'configs/_base_/schedules/schedule_50e.py'
LR, BACKBONE_LR, DECAY, CLIP, EPOCHS, DROP = 2e-4, 2e-5, 1e-4, 0.1, 50, 40


@pytest.fixture(scope='module')
def recipe(request):
    return Config.fromfile(request.config.rootpath / CONFIG)


def official_names(model):
    """Official name of every parameter that is trained, to the parameter."""
    architecture = detect_architecture(model.state_dict(), 'ddetr_plugin')
    names = module_names('official', architecture)
    modules = {**names.theirs, 'backbone': names.backbone}
    return {translate(n, modules): p for n, p in model.named_parameters() if p.requires_grad}


def official_groups(parameters):
    """The official three groups, by official names."""
    slow = ('reference_points', 'sampling_offsets')
    groups = ([], [], [])
    for name, parameter in parameters.items():
        if 'backbone.0' in name:
            groups[1].append(parameter)
        else:
            groups[2 if any(word in name for word in slow) else 0].append(parameter)
    return [
        dict(params=groups[0], lr=LR),
        dict(params=groups[1], lr=BACKBONE_LR),
        dict(params=groups[2], lr=LR * 0.1),
    ]


@pytest.mark.parametrize('variant', VARIANTS)
def test_three_steps_give_the_parameters_of_plain_torch(recipe, variant):
    ours = build(tiny_config(variant)).train()
    plain = copy.deepcopy(ours)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    wrapper = build_optim_wrapper(ours, recipe.optim_wrapper)
    official = torch.optim.AdamW(official_groups(official_names(plain)), lr=LR, weight_decay=DECAY)
    for step in range(3):
        inputs, samples = batch(seed=step)
        wrapper.update_params(sum(ours.loss(inputs, samples).values()))
        official.zero_grad()
        sum(plain.loss(inputs, samples).values()).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), CLIP)
        official.step()
    others = dict(plain.named_parameters())
    moved = set()
    for name, parameter in ours.named_parameters():
        mine, other = parameter, others[name]
        if name.endswith('in_proj_bias'):
            # A bias of all keys does not change a softmax: its gradient is rounding alone.
            width = len(mine) // 3
            mine, other = (torch.cat([x[:width], x[2 * width :]]) for x in (mine, other))
        # A step is at most about the learning rate.
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=2e-7, msg=name)
        if not torch.equal(parameter, before[name]):
            moved.add(name)
    assert moved == {name for name, p in ours.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_parameter_has_the_official_rate_and_decay(recipe, variant):
    model = build(tiny_config(variant))
    names = official_names(model)
    found = {}
    for group in build_optim_wrapper(model, recipe.optim_wrapper).optimizer.param_groups:
        for parameter in group['params']:
            found[id(parameter)] = (
                group['lr'],
                group['weight_decay'],
                group['betas'],
                group['eps'],
            )
    expected = torch.optim.AdamW(official_groups(names), lr=LR, weight_decay=DECAY).param_groups
    wanted = {
        id(p): (pytest.approx(g['lr']), g['weight_decay'], g['betas'], g['eps'])
        for g in expected
        for p in g['params']
    }
    trained = {i: found[i] for i in wanted}
    assert trained == wanted


def test_the_rate_of_every_epoch_is_the_official_one(recipe):
    rates = []
    for kind in ('ours', 'official'):
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=LR)
        if kind == 'ours':
            schedules = [
                PARAM_SCHEDULERS.build(s, default_args=dict(optimizer=optimizer))
                for s in recipe.param_scheduler
            ]
        else:
            schedules = [torch.optim.lr_scheduler.StepLR(optimizer, DROP)]
        rates.append([])
        for _ in range(EPOCHS):
            rates[-1].append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for schedule in schedules:
                schedule.step()
    assert recipe.train_cfg.max_epochs == EPOCHS
    assert rates[0] == pytest.approx(rates[1])
    assert rates[0][DROP - 1 : DROP + 1] == pytest.approx([LR, LR * 0.1])
