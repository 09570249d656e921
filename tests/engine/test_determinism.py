"""The same seed gives the same bits, also where torch refuses what is not deterministic."""

import copy
import os

import pytest
import torch
from builders import VARIANTS, batch, build, tiny_config
from mmengine.config import Config
from mmengine.hooks import Hook

from ddetr_plugin.apis import launch


class Recorder(Hook):
    """Keeps the losses of every step, and the detections of every tested picture."""

    def __init__(self):
        self.losses, self.detections, self.strict = [], [], None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.strict = torch.are_deterministic_algorithms_enabled()
        self.losses.append({name: value.item() for name, value in outputs.items()})

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.detections += [sample.pred_instances for sample in outputs]


@pytest.fixture
def usual_algorithms():
    """Takes back what a Runner switches on."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False


@pytest.fixture
def run(tiny_job, tmp_path, usual_algorithms):
    """Trains for an epoch, then tests: (losses, weights, detections)."""

    def call(name, seed=0, deterministic=False, **changes):
        config = Config.fromfile(tiny_job(train_cfg=dict(max_epochs=1, val_begin=2), **changes))
        config.launcher = 'none'
        config.randomness = dict(seed=seed, deterministic=deterministic)
        config.work_dir = str(tmp_path / name)
        config.experiment_name += f'-{name}'
        runner = launch.build_runner(config)
        recorder = Recorder()
        runner.register_hook(recorder)
        runner.train()
        runner.test()
        assert recorder.strict == deterministic
        return recorder.losses, runner.model.state_dict(), recorder.detections

    return call


def assert_same_bits(one, other):
    assert len(one[0]) == 4 and one[0] == other[0]
    assert all(torch.equal(value, other[1][name]) for name, value in one[1].items())
    assert len(one[2]) == len(other[2]) == 8
    for first, second in zip(one[2], other[2]):
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(first[key], second[key])


def test_two_trainings_with_one_seed_have_the_same_losses_weights_and_detections(run):
    """With dropout, flips, shuffling and data workers."""
    workers = {'train_dataloader.num_workers': 2}
    first = run('first', **workers)
    torch.rand(7)  # what was drawn before does not matter
    assert_same_bits(first, run('second', **workers))
    assert run('other', seed=1, **workers)[0] != first[0]


def test_training_and_inference_run_where_torch_refuses_nondeterministic_algorithms(run):
    two_stage = {'model': copy.deepcopy(VARIANTS['two-stage']), 'model.query_head.num_classes': 3}
    two_stage['model.query_head.num_queries'] = 12
    two_stage['model.query_head.embed_dims'] = 16
    first = run('first', deterministic=True, **two_stage)
    assert_same_bits(first, run('second', deterministic=True, **two_stage))


def step(device, dtype):
    """Losses, gradients and detections of one step of a two-stage model."""
    model = build(tiny_config('two-stage', dropout=0.1)).to(device)
    inputs, samples = batch(image_shapes=((160, 192), (130, 96)))
    inputs, samples = inputs.to(device), [sample.to(device) for sample in samples]
    torch.manual_seed(1)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        losses = model.train().loss(inputs, samples)
    sum(losses.values()).backward()
    with torch.no_grad():
        found = [sample.pred_instances for sample in model.eval().predict(inputs, samples)]
    return [
        *losses.values(),
        *(p.grad for p in model.parameters() if p.grad is not None),
        *(instances[key] for instances in found for key in ('bboxes', 'scores')),
    ]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    'device',
    [
        'cpu',
        pytest.param(
            'cuda',
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA GPU is visible'),
            ],
        ),
    ],
)
def test_a_step_has_the_same_bits_every_time(device, dtype, usual_algorithms, monkeypatch):
    # cuBLAS takes part only so; torch says so where it is missing.
    monkeypatch.setitem(os.environ, 'CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    torch.use_deterministic_algorithms(True)
    for one, other in zip(step(device, dtype), step(device, dtype), strict=True):
        assert torch.equal(one, other)
