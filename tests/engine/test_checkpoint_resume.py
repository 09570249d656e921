"""A run that was stopped and resumed gives the weights of one that was not."""

from contextlib import nullcontext

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner


class KilledError(Exception):
    """Stands for the signal that ends a run in the middle of an epoch."""


class StopAt(Hook):
    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.iteration:
            raise KilledError


def run(config_file, work_dir, stop_at=None, resume=False, **changes):
    """Train and return everything that training changes: weights and optimizer state."""
    config = Config.fromfile(config_file)
    config.merge_from_dict(changes)
    config.work_dir = str(work_dir)
    config.experiment_name += f'-{work_dir.name}-{resume}'
    config.resume = resume
    runner = Runner.from_cfg(config)
    if stop_at is not None:
        runner.register_hook(StopAt(stop_at))
    with pytest.raises(KilledError) if stop_at is not None else nullcontext():
        runner.train()
    if hasattr(runner.train_loop, 'dataloader_iterator'):
        # Left to the garbage collector, every data worker is waited for five seconds.
        runner.train_loop.dataloader_iterator._iterator._shutdown_workers()
    return runner.model.state_dict(), runner.optim_wrapper.state_dict()['state']


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_same_bits(value, other[key])
        else:
            assert torch.equal(value, other[key]), key


def test_a_run_killed_within_an_epoch_and_resumed_ends_with_the_same_bits(tiny_job, tmp_path):
    config = tiny_job(train_cfg=dict(max_epochs=2))
    whole, whole_optimizer = run(config, tmp_path / 'whole')
    # 4 iterations per epoch: 5 is in the second, after the first one's checkpoint.
    run(config, tmp_path / 'stopped', stop_at=5)
    assert (tmp_path / 'stopped' / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    torch.manual_seed(99)
    resumed, resumed_optimizer = run(config, tmp_path / 'stopped', resume=True)
    assert_same_bits(whole, resumed)
    assert_same_bits(whole_optimizer, resumed_optimizer)


def test_without_the_stored_random_state_the_resumed_run_differs(tiny_job, tmp_path):
    """Guards the test above: dropout and flips really do depend on the random state."""
    config = tiny_job(train_cfg=dict(max_epochs=2, val_begin=3), custom_hooks=[])
    whole, _ = run(config, tmp_path / 'whole')
    run(config, tmp_path / 'stopped', stop_at=5)
    resumed, _ = run(config, tmp_path / 'stopped', resume=True)
    assert any(not torch.equal(whole[key], resumed[key]) for key in whole)


def test_an_iteration_based_run_with_a_data_worker_resumes_with_the_same_bits(tiny_job, tmp_path):
    config = tiny_job(
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=5, val_interval=2),
        train_dataloader=dict(
            num_workers=1,
            persistent_workers=True,
            sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
        ),
        param_scheduler=[dict(type='MultiStepLR', by_epoch=False, milestones=[4])],
        default_hooks=dict(checkpoint=dict(by_epoch=False, interval=2)),
    )
    whole, _ = run(config, tmp_path / 'whole')
    run(config, tmp_path / 'stopped', stop_at=3)
    resumed, _ = run(config, tmp_path / 'stopped', resume=True)
    assert_same_bits(whole, resumed)


def test_loading_weights_for_a_new_training_does_not_bring_their_random_state(tiny_job, tmp_path):
    config = tiny_job(train_cfg=dict(max_epochs=1, val_begin=2))
    run(config, tmp_path / 'first')
    loaded = dict(load_from=str(tmp_path / 'first' / 'epoch_1.pth'))
    one, _ = run(config, tmp_path / 'one', **loaded)
    other, _ = run(config, tmp_path / 'other', custom_hooks=[], **loaded)
    assert_same_bits(one, other)
