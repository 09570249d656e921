"""Merged groups of parameters train as mmengine's groups of one do."""

import copy

import pytest
import torch
from builders import batch, build, tiny_config
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from ddetr_plugin.config_files import find_config

SCHEDULE = find_config('ddetr_plugin::_base_/schedules/schedule_50e.py')


def wrappers(model):
    """The optimiser of the configs for `model`, and mmengine's for a copy of it; the copy."""
    merged = Config.fromfile(SCHEDULE).optim_wrapper
    stock = copy.deepcopy(merged)
    del stock['constructor']
    twin = copy.deepcopy(model)
    return build_optim_wrapper(model, merged), build_optim_wrapper(twin, stock), twin


def settings(wrapper, model):
    """Name of every parameter -> what its group says."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = {k: v for k, v in group.items() if k != 'params'}
    return found


@pytest.mark.parametrize('variant', ['base', 'two-stage'])
def test_every_parameter_has_the_settings_that_mmengine_gives_it(variant):
    model = build(tiny_config(variant))
    merged, stock, twin = wrappers(model)
    expected = settings(stock, twin)
    assert settings(merged, model) == expected
    assert len(stock.optimizer.param_groups) == len(expected) > 50
    # Two learning rates, and frozen parameters beside them.
    assert 2 <= len(merged.optimizer.param_groups) <= 3


def test_a_step_gives_the_same_parameters():
    model = build(tiny_config())
    merged, stock, twin = wrappers(model)
    inputs, samples = batch(seed=0)
    for wrapper, trained in ((merged, model), (stock, twin)):
        wrapper.clip_grad_kwargs = {}  # the norm is summed in another order
        wrapper.update_params(sum(trained.train().loss(inputs, samples).values()))
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters()):
        assert torch.equal(parameter, other), name


def test_without_different_settings_there_is_one_group():
    config = Config.fromfile(SCHEDULE).optim_wrapper
    del config['paramwise_cfg']
    wrapper = build_optim_wrapper(build(tiny_config()), config)
    assert len(wrapper.optimizer.param_groups) == 1


def test_settings_may_be_lists_as_configs_write_them():
    config = Config.fromfile(SCHEDULE).optim_wrapper
    config.paramwise_cfg.custom_keys['bbox_head'] = dict(betas=[0.9, 0.95])
    model = build(tiny_config())
    wrapper = build_optim_wrapper(model, config)
    betas = {name: group['betas'] for name, group in settings(wrapper, model).items()}
    assert all((list(b) == [0.9, 0.95]) == ('bbox_head' in name) for name, b in betas.items())
    assert len(wrapper.optimizer.param_groups) <= 4
