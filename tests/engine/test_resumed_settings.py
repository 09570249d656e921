"""A resumed run has the settings of its config; what the checkpoint decides is named."""

import copy
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch import nn

from ddetr_plugin.checkpoints.files.config_text import read_config_text
from ddetr_plugin.engine.resuming import settings as resumed_settings
from ddetr_plugin.engine.resuming.optimizer import drop_untrained
from ddetr_plugin.engine.resuming.settings import config_differences


@MODELS.register_module()
class TwoLayers(BaseModel):
    """The smallest model with a backbone: numbers (B, 3) to their loss, or to nothing."""

    def __init__(self, width=4):
        super().__init__()
        self.backbone = nn.Linear(3, width)
        self.head = nn.Linear(width, 1)

    def forward(self, inputs, mode='loss'):
        out = self.head(self.backbone(torch.stack(list(inputs))))
        return dict(loss=out.square().mean()) if mode == 'loss' else list(out)


@DATASETS.register_module()
class EightRows(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.arange(3.0) + index)


@METRICS.register_module()
class Constant(BaseMetric):
    def __init__(self, value=0.5):
        super().__init__(prefix='test')
        self.value = value

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=self.value, other=self.value)


class SettingsRecorder(Hook):
    """The settings of the optimiser in every iteration, with the epoch."""

    def __init__(self):
        self.seen = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        groups = [
            {name: value for name, value in group.items() if name != 'params'}
            for group in runner.optim_wrapper.param_groups
        ]
        self.seen.append((runner.epoch, groups))


WARM_UP = dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6)
STEPS = dict(type='MultiStepLR', by_epoch=True, milestones=[2])
COSINE = dict(type='CosineAnnealingLR', by_epoch=True, T_max=3, eta_min=1e-6)
MOMENTUM = dict(type='LinearMomentum', start_factor=0.5, by_epoch=False, begin=0, end=6)


def config_of(tmp_path, **changes):
    """Three epochs of four iterations; two groups of parameters; two schedules."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(type='EightRows'),
    )
    config = Config(
        dict(
            model=dict(type='TwoLayers', width=4),
            train_dataloader=loader,
            val_dataloader=copy.deepcopy(loader),
            val_evaluator=dict(type='Constant'),
            train_cfg=dict(by_epoch=True, max_epochs=3),
            val_cfg=dict(),
            optim_wrapper=dict(
                type='OptimWrapper',
                constructor='ddetr_plugin.MergedGroupsConstructor',
                optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1),
                paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
            ),
            param_scheduler=[WARM_UP, STEPS],
            auto_scale_lr=dict(enable=False, base_batch_size=16),
            randomness=dict(seed=0),
            default_hooks=dict(
                checkpoint=dict(
                    type='ddetr_plugin.AtomicCheckpointHook', save_best='test/score', rule='greater'
                )
            ),
            custom_hooks=[],
            experiment_name=tmp_path.name,
        )
    )
    config.merge_from_dict(changes)
    return config


def run(tmp_path, folder, resume=False, **changes):
    """Train; the runner, what `SettingsRecorder` saw, and the log."""
    config = config_of(tmp_path, **changes)
    config.work_dir = str(tmp_path / folder)
    config.experiment_name += f'-{folder}-{resume}'
    config.resume = resume
    runner = Runner.from_cfg(config)
    recorder = SettingsRecorder()
    runner.register_hook(recorder)
    runner.train()
    log = ''.join(path.read_text() for path in (tmp_path / folder).glob('*/*.log'))
    return runner, recorder.seen, log


def resume(tmp_path, first=None, **changes):
    """Train an epoch with `first`, and go on with `changes`; as `run`."""
    if not (tmp_path / 'stopped').exists():
        run(tmp_path, 'stopped', **{'train_cfg.max_epochs': 1, **(first or {})})
        for log in (tmp_path / 'stopped').glob('*/*.log'):
            log.unlink()
    folder = f'resumed-{len(list(tmp_path.iterdir()))}'
    shutil.copytree(tmp_path / 'stopped', tmp_path / folder)
    return run(tmp_path, folder, resume=True, **changes)


def assert_same_settings(one, other):
    assert len(one) == len(other)
    for (epoch, groups), (other_epoch, other_groups) in zip(one, other):
        assert epoch == other_epoch
        for group, expected in zip(groups, other_groups, strict=True):
            assert group.keys() == expected.keys()
            for name, value in expected.items():
                assert group[name] == (
                    pytest.approx(value, rel=1e-9) if isinstance(value, float | tuple) else value
                ), name


@pytest.mark.parametrize(
    'changes',
    [
        {'optim_wrapper.optimizer.lr': 1e-4},
        {'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult': 0.5},
        {
            'optim_wrapper.optimizer.weight_decay': 0.2,
            'optim_wrapper.optimizer.betas': (0.8, 0.9),
            'optim_wrapper.optimizer.eps': 1e-6,
        },
        {'optim_wrapper.optimizer.type': 'Adam'},
        {'param_scheduler.1.milestones': [1], 'param_scheduler.1.gamma': 0.3},
        {'param_scheduler': [WARM_UP, COSINE, MOMENTUM]},
        {'param_scheduler': None, 'optim_wrapper.optimizer.lr': 1e-4},
        {
            'param_scheduler': [dict(COSINE, convert_to_iter_based=True)],
            'train_dataloader.batch_size': 4,
        },
        {'auto_scale_lr.enable': True},
        {'train_cfg.max_epochs': 4},
        {},
    ],
    ids=lambda changes: ', '.join(key.split('.', 1)[-1] for key in changes) or 'nothing',
)
def test_every_iteration_has_the_settings_of_a_run_that_had_them_all_along(tmp_path, changes):
    _, expected, _ = run(tmp_path, 'whole', **changes)
    _, seen, _ = resume(tmp_path, **changes)
    assert_same_settings(seen, [step for step in expected if step[0] >= 1])


def test_a_checkpoint_of_the_same_settings_is_left_as_it_is(tmp_path, monkeypatch):
    befores = []

    def apply(runner, checkpoint):
        befores.append(copy.deepcopy(checkpoint))
        resumed_settings.apply_present_settings(runner, checkpoint)
        for key in ('optimizer', 'param_schedulers', 'state_dict'):
            assert str(checkpoint[key]) == str(befores[0][key]), key

    monkeypatch.setattr('ddetr_plugin.engine.hooks.atomic_checkpoint.apply_present_settings', apply)
    # Its end is that of the training, which the first part had otherwise.
    steps = dict(STEPS, end=9)
    _, _, log = resume(tmp_path, {'param_scheduler.1': steps}, **{'param_scheduler.1': steps})
    assert len(befores) == 1
    assert 'max_epochs 3 (was 1)' in log
    assert log.count('(was') == 1


def test_the_log_tells_each_setting_once_with_what_becomes_of_it(tmp_path):
    changes = {
        'optim_wrapper.optimizer.lr': 1e-4,
        'optim_wrapper.optimizer.amsgrad': True,
        'optim_wrapper.clip_grad': dict(max_norm=1.0),
        'train_dataloader.batch_size': 4,
        'train_cfg.max_epochs': 2,
        'randomness.seed': 1,
        'val_evaluator.value': 0.4,
        'param_scheduler.1.milestones': [1],
    }
    _, _, log = resume(tmp_path, **changes)
    start = log.index('epoch_1.pth is of a run with other settings.')
    told = log[start : log.index('\n20', start)].splitlines()
    assert 'WARNING' in log[log.rindex('\n', 0, start) : start]
    assert [line.strip() for line in told[1:]] == [
        'From here on:',
        'MultiStepLR milestones [1] (was [2])',
        'MultiStepLR end 2 (was 1)',
        'lr 1e-05 (was 0.0001), 0.0001 (was 0.001)',
        'at this point: lr 8.2e-07 (was 8.2e-05), 8.2e-06 (was 0.00082)',
        'train_cfg.max_epochs 2 (was 1)',
        "optim_wrapper.clip_grad {'max_norm': 1.0} (was None)",
        'Not, or only in part:',
        'amsgrad True (was False): it cannot be turned on in the middle',
        'train_dataloader.batch_size 4 (was 2): but 4 iterations count as done; learning rates do '
        'not scale with it (see --auto-scale-lr)',
        'randomness.seed 1 (was 0): it orders the images from here on, but random numbers are '
        'still those of seed 0',
        'val_evaluator.value 0.4 (was None): but the best score so far, 0.5, was measured as '
        'before',
    ]


def test_a_schedule_that_depends_on_scores_stays_as_it_is(tmp_path):
    plateau = dict(
        type='ReduceOnPlateauLR', monitor='test/score', rule='greater', patience=0, factor=0.5
    )
    first = {'param_scheduler': [plateau]}
    runner, _, log = resume(
        tmp_path,
        first,
        **first,
        **{'optim_wrapper.optimizer.lr': 1e-5, 'optim_wrapper.optimizer.weight_decay': 0.2},
    )
    group = runner.optim_wrapper.param_groups[0]
    assert (group['initial_lr'], group['weight_decay']) == (1e-4, 0.2)
    assert 'lr 1e-06 (was 0.0001), 1e-05 (was 0.001)' in log.split('Not, or only in part:')[1]


def test_values_that_a_hook_has_changed_stay_where_the_config_is_the_same(tmp_path):
    run(tmp_path, 'stopped', **{'train_cfg.max_epochs': 1})
    path = tmp_path / 'stopped' / 'epoch_1.pth'
    content = torch.load(path)
    for group in content['optimizer']['param_groups']:
        group['weight_decay'] = 0.05
    torch.save(content, path)
    runner, _, log = resume(tmp_path)
    assert runner.optim_wrapper.param_groups[0]['weight_decay'] == 0.05
    assert 'weight_decay' not in log.split('with other settings.')[1].split('\n20')[0]


def test_without_averages_a_run_goes_on_from_what_was_trained(tmp_path):
    """The file has the averages for its weights, and the trained ones beside them."""
    averaged = {'custom_hooks': [dict(type='EMAHook', momentum=0.5)]}
    still = {'optim_wrapper.optimizer.lr': 0.0, 'optim_wrapper.optimizer.weight_decay': 0.0}
    with_it, _, _ = resume(tmp_path, averaged, **averaged, **still)
    without, _, log = resume(tmp_path, averaged, **still)
    (hook,) = (hook for hook in with_it.hooks if isinstance(hook, EMAHook))
    trained = with_it.model.state_dict()
    assert any(
        not torch.equal(v, hook.ema_model.module.state_dict()[k]) for k, v in trained.items()
    )
    for name, weight in without.model.state_dict().items():
        assert torch.equal(weight, trained[name]), name
    assert 'not their averages' in log


def test_a_loss_scale_starts_anew_where_the_config_gives_another(tmp_path):
    class Scaler:
        def state_dict(self):
            return dict(scale=8.0)

    class Wrapper:
        loss_scaler = Scaler()

    state = dict(loss_scaler=dict(scale=2.0))
    for now, expected in ((512.0, 2.0), (8.0, 8.0)):
        found = config_differences(
            dict(optim_wrapper=dict(loss_scale=512.0)), dict(optim_wrapper=dict(loss_scale=now))
        )
        resumed_settings._adapt_loss_scale(state, Wrapper, list(found))
        assert state['loss_scaler']['scale'] == expected


@pytest.mark.parametrize('keys', [dict(backbone=dict(lr_mult=0.1)), dict(bias=dict(lr_mult=2.0))])
def test_a_run_whose_frozen_parameters_the_optimiser_had_goes_on(tmp_path, monkeypatch, keys):
    """As where a backbone was frozen after the optimiser was built, and now is before."""
    train, build = TwoLayers.train, TwoLayers.__init__

    def freeze(model, mode=True):
        train(model, mode)
        model.backbone.requires_grad_(False)
        return model

    monkeypatch.setattr(TwoLayers, 'train', freeze)
    groups = {'optim_wrapper.paramwise_cfg': dict(_delete_=True, custom_keys=keys)}
    run(tmp_path, 'stopped', **copy.deepcopy(groups), **{'train_cfg.max_epochs': 1})
    state = torch.load(tmp_path / 'stopped' / 'epoch_1.pth')['optimizer']
    sizes = [len(group['params']) for group in state['param_groups']]
    assert (sum(sizes), len(state['state'])) == (4, 2)

    def build_frozen(model, width=4):
        build(model, width)
        model.train()

    monkeypatch.setattr(TwoLayers, '__init__', build_frozen)
    _, expected, _ = run(tmp_path, 'whole', **copy.deepcopy(groups))
    runner, seen, _ = resume(tmp_path, **copy.deepcopy(groups))
    for (_, found), (_, wanted) in zip(seen, expected[4:], strict=True):
        assert [g['lr'] for g in found[: len(wanted)]] == pytest.approx([g['lr'] for g in wanted])
    states = runner.optim_wrapper.optimizer.state.values()
    assert [int(state['step']) for state in states] == [12, 12]


def test_a_state_of_another_model_keeps_its_parameters():
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    state = dict(state={0: dict(step=1)}, param_groups=[dict(params=[0, 1, 2])])
    drop_untrained(state, optimizer)
    assert state['param_groups'] == [dict(params=[0, 1, 2])]


def test_a_config_is_read_from_its_text_and_not_run():
    text = (
        "import os\na = dict(b=(1, -2), c=[dict({'d.e': None}, **{'f.g': True})])\n"
        "evil = os.system('false')\nh = {'i': 1e-05}\n"
    )
    assert read_config_text(text) == {
        'a': {'b': [1, -2], 'c': [{'d.e': None, 'f.g': True}]},
        'evil': "os.system('false')",
        'h': {'i': 1e-5},
    }
    assert read_config_text('not python :') == {}
