"""Backbones that freeze stages in `train()` are frozen before a wrapper counts their gradients."""

import copy

import pytest
import torch
from builders import tiny_config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from test_distributed import (
    SAME_TRAINING,
    SHARDED,
    WRAPPER,
    assert_the_same_training,
    recorded_job,  # noqa: F401  a fixture
    train,
)

from ddetr_plugin.apis import launch
from ddetr_plugin.apis.config_reading import load_config
from ddetr_plugin.registry import MODELS

BACKBONES = {
    'EfficientNetLite0': (
        dict(type='ddetr_plugin.EfficientNetLite0', out_indices=(3, 4, 5), frozen_stages=3),
        [40, 112, 320],
    ),
    'SwinTransformer': (
        dict(
            type='mmdet.SwinTransformer',
            embed_dims=8,
            depths=(1, 1, 1, 1),
            num_heads=(1, 1, 2, 2),
            window_size=4,
            out_indices=(1, 2, 3),
            frozen_stages=1,
            drop_path_rate=0.0,
        ),
        [16, 32, 64],
    ),
}


def changes_for(name):
    """What a config of `recorded_job` gets so that two iterations of this backbone make a step."""
    backbone, channels = BACKBONES[name]
    # A config takes `_delete_` out of what it is given.
    changes = copy.deepcopy(SAME_TRAINING)
    changes['model'].update(backbone=dict(backbone, _delete_=True), neck=dict(in_channels=channels))
    return changes


WRAPPERS = {
    'static graph, as in the configs': dict(model_wrapper_cfg=WRAPPER),
    'no static graph': dict(model_wrapper_cfg=dict(WRAPPER, static_graph=False)),
    'sharded': SHARDED,
}


@pytest.fixture(scope='module')
def runs_of_one():
    """Losses and weights of the run of one process, by backbone, once there are any."""
    return {}


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize('name', BACKBONES)
def test_two_processes_accumulate_the_gradients_of_one(
    recorded_job,  # noqa: F811
    tmp_path,
    runs_of_one,
    name,
    wrapper,
):
    option = 'optim_wrapper.accumulative_counts=2'
    if name not in runs_of_one:
        config = recorded_job(name='one.py', **changes_for(name))
        runs_of_one[name] = train(config, tmp_path / 'one', 1, 4, option)
    config = recorded_job(name='two.py', **changes_for(name), **WRAPPERS[wrapper])
    two = train(config, tmp_path / 'two', 2, 2, option)
    assert_the_same_training(runs_of_one[name], two)


@pytest.mark.parametrize('name', BACKBONES)
def test_a_built_detector_has_frozen_what_training_would_freeze(name):
    backbone, channels = BACKBONES[name]
    model = MODELS.build(
        tiny_config(backbone=dict(backbone, _delete_=True), neck=dict(in_channels=channels))
    )
    built = {name for name, p in model.named_parameters() if p.requires_grad}
    model.train()
    assert built == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(built) < len(list(model.parameters()))


@MODELS.register_module()
class LateFreezing(BaseModel):
    """A model of somebody else, that freezes a part of itself in `train()`."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def forward(self, *inputs, mode='tensor'):
        return None

    def train(self, mode=True):
        super().train(mode)
        self.stem.requires_grad_(False)
        return self


def test_a_model_of_somebody_else_is_frozen_before_the_launcher_wraps_it(tiny_job, monkeypatch):
    seen = []

    def wrap(runner, wrapper, model):
        seen.append([name for name, p in model.named_parameters() if p.requires_grad])
        return model

    monkeypatch.setattr(Runner, 'wrap_model', wrap)
    config = load_config(tiny_job())
    config.model = dict(type='ddetr_plugin.LateFreezing')
    launch.build_runner(config)
    assert seen == [['head.weight', 'head.bias']]


def test_our_backbone_is_frozen_without_a_detector():
    backbone, _ = BACKBONES['EfficientNetLite0']
    model = MODELS.build(dict(backbone))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert {name.split('.')[1] for name in frozen} == {'0', '1', '2'}


def test_a_sharded_run_resumes_with_the_learning_rate_of_its_config(
    recorded_job,  # noqa: F811
    tmp_path,
):
    """With schedules and several groups; a rate of 0 shows that it is used."""
    changes = dict(
        changes_for('SwinTransformer'),
        param_scheduler=[dict(type='LinearLR', start_factor=0.5, by_epoch=False, end=6)],
        **SHARDED,
    )
    changes['optim_wrapper']['optimizer'] = dict(type='AdamW', lr=1e-3, weight_decay=0.1)
    changes['optim_wrapper']['paramwise_cfg'] = dict(custom_keys=dict(neck=dict(lr_mult=0.5)))
    config = recorded_job(**changes)
    train(config, tmp_path / 'whole', 2, 2)
    first = torch.load(tmp_path / 'whole' / 'epoch_1.pth')['state_dict']
    resume = ['resume=True', f'load_from={tmp_path}/whole/epoch_1.pth']
    _, weights = train(config, tmp_path / 'rest', 2, 2, *resume, 'optim_wrapper.optimizer.lr=0.0')
    for name, weight in weights.items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(weight, first[name]), name
