"""Several processes train as one process with the whole batch, whatever each of them gets."""

import json
import sys
from pathlib import Path

import pytest
import torch
from builders import build
from forked import run, run_tool
from mmengine.config import Config

from ddetr_plugin.checkpoints import export
from ddetr_plugin.engine import AutocastOptimWrapper, ShardingStrategy

REPO = Path(__file__).resolve().parents[2]

# Hooks for the config under test: every process writes what it saw of every step to a file.
RECORDER = '''
import json
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class LossRecorder(Hook):
    def __init__(self, folder):
        self.folder = folder

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        line = {name: float(value) for name, value in outputs.items()}
        with open(f'{self.folder}/{runner.rank}.jsonl', 'a') as file:
            file.write(json.dumps(line) + '\\n')

@HOOKS.register_module()
class CollectiveCounter(Hook):
    """Writes how often each collective was called in every step, and how many buckets there are."""
    def __init__(self, folder):
        self.folder = folder

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.profiler.start()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.profiler.stop()
        events = self.profiler.key_averages()
        line = {event.key: event.count for event in events if event.key.startswith('c10d::')}
        sizes = runner.model._get_ddp_logging_data().get('rebuilt_bucket_sizes', '')
        with open(f'{self.folder}/{runner.rank}.jsonl', 'a') as file:
            file.write(json.dumps({'collectives': line, 'buckets': len(sizes.split(','))}) + '\\n')
'''


def train(config, folder, processes, batch_size, *options, torchrun=False):
    """Run tools/train.py; return per process the list of loss dicts, and the final weights."""
    folder.mkdir()
    arguments = [str(config), '--work-dir', str(folder), '--cfg-options', *options]
    arguments += [f'train_dataloader.batch_size={batch_size}', f'custom_hooks.0.folder={folder}']
    if torchrun:
        module = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
        command = [sys.executable, *module, 'tools/train.py', *arguments, '--launcher', 'pytorch']
        run(command, config.parent)
    else:
        run_tool('train', processes, arguments, config.parent)
    losses = []
    for rank in range(processes):
        lines = (folder / f'{rank}.jsonl').read_text().splitlines()
        losses.append([json.loads(line) for line in lines])
    return losses, torch.load(folder / 'epoch_2.pth')['state_dict']


BASES = REPO / 'configs' / '_base_'
WRAPPER = Config.fromfile(BASES / 'default_runtime.py').model_wrapper_cfg
# mmengine's FlexibleRunner wants an env_cfg, as default_runtime.py has it.
SHARDED = dict(Config.fromfile(BASES / 'fsdp.py').to_dict(), env_cfg={})
# What would differ by construction: statistics of half a batch, random numbers of two processes.
SAME_ANYWHERE = {
    'model': dict(
        backbone=dict(norm_eval=True),
        encoder=dict(layer=dict(dropout=0.0, ffn=dict(ffn_drop=0.0))),
        decoder=dict(layer=dict(dropout=0.0, ffn=dict(ffn_drop=0.0), self_attn=dict(dropout=0.0))),
    ),
    'train_dataloader.dataset.pipeline.3.prob': 0.0,
}


@pytest.fixture
def recorded_job(tiny_job, tmp_path):
    """`tiny_job` for two epochs, with a hook of `RECORDER` as the first."""
    (tmp_path / 'loss_recorder.py').write_text(RECORDER)

    def write(recorder='LossRecorder', custom_hooks=(), **changes):
        return tiny_job(
            custom_imports=dict(imports=['ddetr_plugin', 'loss_recorder']),
            custom_hooks=[dict(type=recorder, folder=''), *custom_hooks],
            **changes,
        )

    return write


@pytest.fixture(scope='module')
def run_of_one():
    """Losses and weights of the run of one process, once there are any."""
    return {}


SAME_TRAINING = dict(
    SAME_ANYWHERE,
    train_cfg=dict(max_epochs=2, val_begin=3),
    optim_wrapper=dict(
        optimizer=dict(_delete_=True, type='SGD', lr=1e-2), clip_grad=dict(max_norm=1.0)
    ),
)


def assert_the_same_training(of_one, of_many):
    """Losses and weights of one process equal those of several with the same batch in all."""
    ((one,), weights), (many, weights_of_many) = of_one, of_many
    assert {len(steps) for steps in (one, *many)} == {4}
    for step, (whole, *parts) in enumerate(zip(one, *many, strict=True)):
        for name, value in whole.items():
            # Each process divides by the mean number of boxes per process, so the mean of the
            # processes is the loss of the whole batch. float32 sums in another order (about
            # 1e-7), and steps carry the difference on: 1e-5.
            mean = sum(part[name] for part in parts) / len(parts)
            assert mean == pytest.approx(value, rel=1e-5), (step, name)
    assert weights.keys() == weights_of_many.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weights_of_many[name], weight, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ('processes', 'changes', 'torchrun'),
    [
        (4, {}, False),
        (2, dict(model_wrapper_cfg=WRAPPER), True),
        (2, SHARDED, False),
    ],
    ids=['four', 'two of the configs, by torchrun', 'two, sharded'],
)
def test_gloo_processes_give_the_losses_of_one_with_the_batch_of_all(
    recorded_job, tmp_path, run_of_one, processes, changes, torchrun
):
    if not run_of_one:
        config = recorded_job(name='one.py', **SAME_TRAINING)
        run_of_one['all'] = train(config, tmp_path / 'one', 1, batch_size=4)
    config = recorded_job(name='many.py', **SAME_TRAINING, **changes)
    many = train(config, tmp_path / 'many', processes, 4 // processes, torchrun=torchrun)
    assert_the_same_training(run_of_one['all'], many)


def test_a_process_without_ground_truth_neither_hangs_nor_skews_the_normaliser(
    recorded_job, tiny_coco, tmp_path
):
    """Every second picture, all those of the second process, has no boxes."""
    content = json.loads(tiny_coco.annotations.read_text())
    ids = [image['id'] for image in content['images']]
    kept = {ids[0], ids[2], ids[4]}
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in kept]
    file = tmp_path / 'half.json'
    file.write_text(json.dumps(content))
    changes = {
        **SAME_TRAINING,
        'train_dataloader.dataset.ann_file': str(file),
        'train_dataloader.dataset.filter_cfg': dict(filter_empty_gt=False),
        'train_dataloader.sampler.shuffle': False,
    }
    one = train(recorded_job(name='one.py', **changes), tmp_path / 'one', 1, 4)
    two = train(recorded_job(name='two.py', **changes), tmp_path / 'two', 2, 2)
    assert_the_same_training(one, two)
    with_boxes, without = two[0]
    assert all(losses['loss_bbox'] > 0 for losses in with_boxes)
    assert all(losses['loss_bbox'] == 0 < losses['loss_cls'] for losses in without)


def test_a_step_has_one_reduction_per_bucket_of_gradients_and_one_of_the_normaliser(
    recorded_job, tmp_path
):
    """No barrier, no broadcast of buffers, nothing per layer or loss."""
    config = recorded_job(
        recorder='CollectiveCounter',
        train_cfg=dict(max_epochs=3, val_begin=4),
        # So small a bucket that this model has several.
        model_wrapper_cfg=dict(WRAPPER, bucket_cap_mb=0.1),
    )
    seen, _ = train(config, tmp_path / 'run', 2, 2)
    for steps in seen:
        # With a static graph DDP plans its buckets in the second step, agrees on them in the third.
        assert len(steps) == 6
        for step in steps[3:]:
            assert step['buckets'] > 2
            assert step['collectives'] == {'c10d::allreduce_': step['buckets'] + 1}


def test_gradients_of_several_iterations_make_one_step(recorded_job, tmp_path):
    """Which a static graph, as the configs have it, cannot do: its first iteration must reduce."""
    config = recorded_job(
        **SAME_ANYWHERE,
        train_cfg=dict(max_epochs=2, val_begin=3),
        optim_wrapper=dict(
            optimizer=dict(_delete_=True, type='SGD', lr=1e-2), accumulative_counts=2
        ),
        model_wrapper_cfg=WRAPPER,
    )
    assert WRAPPER['static_graph']
    seen, _ = train(config, tmp_path / 'run', 2, 2)
    assert [len(steps) for steps in seen] == [4, 4]


def test_a_sharded_training_resumes_with_the_bits_of_an_uninterrupted_one(recorded_job, tmp_path):
    """With validations, after which checkpoints of the best are written once more."""
    config = recorded_job(
        train_cfg=dict(max_epochs=2),
        custom_hooks=[dict(type='ddetr_plugin.RandomStateHook')],
        optim_wrapper=dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))),
        **SHARDED,
    )
    whole, weights = train(config, tmp_path / 'whole', 2, 2)
    resume = ['resume=True', f'load_from={tmp_path}/whole/epoch_1.pth']
    rest, weights_of_rest = train(config, tmp_path / 'rest', 2, 2, *resume)
    assert rest == [losses[2:] for losses in whole]
    for name, weight in weights.items():
        assert torch.equal(weights_of_rest[name], weight), name


def test_a_sharded_training_starts_from_weights_of_another_implementation(recorded_job, tmp_path):
    config = recorded_job(
        train_cfg=dict(max_epochs=2, val_begin=3),
        custom_hooks=[dict(type='ddetr_plugin.ForeignCheckpointHook')],
        optim_wrapper=dict(optimizer=dict(lr=0.0, weight_decay=0.0)),
        **SAME_ANYWHERE,
        **SHARDED,
    )
    model = build(Config.fromfile(config, import_custom_modules=False).model, seed=3)
    official = tmp_path / 'official.pth'
    torch.save({'model': export(model.state_dict(), 'official')}, official)
    _, weights = train(config, tmp_path / 'run', 2, 2, f'load_from={official}')
    for name, weight in model.state_dict().items():
        if not name.endswith('num_batches_tracked'):
            assert torch.equal(weights[name], weight), name


def test_a_sharded_training_of_one_process_is_refused(tmp_path):
    strategy = ShardingStrategy(work_dir=str(tmp_path))
    with pytest.raises(ValueError, match='start it with torchrun'):
        strategy.prepare(torch.nn.Linear(2, 2))


def test_a_sharded_training_with_scaled_gradients_is_refused(tmp_path, monkeypatch):
    """After an overflow in one process, each would have another scale."""
    build = 'mmengine._strategy.FSDPStrategy.build_optim_wrapper'
    monkeypatch.setattr(build, lambda strategy, wrapper, model: wrapper)
    strategy = ShardingStrategy(work_dir=str(tmp_path))
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=1.0)
    wrapper = AutocastOptimWrapper(optimizer, dtype='bfloat16')
    assert strategy.build_optim_wrapper(wrapper) is wrapper
    with pytest.raises(ValueError, match="dtype='bfloat16'"):
        strategy.build_optim_wrapper(AutocastOptimWrapper(optimizer, dtype='float16'))
