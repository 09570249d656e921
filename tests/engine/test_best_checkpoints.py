"""The file of the best weights is there if and only if a complete checkpoint names it."""

import errno
import os
from pathlib import Path

import pytest
import torch
from forked import run_tool
from test_checkpoint_files import KilledError, names, runner_of

from ddetr_plugin.engine import CheckpointError


def fail(runner, errors):
    """Raise these errors instead of calls of the runner's `save_checkpoint`, counted from 1."""
    save, count = runner.save_checkpoint, 0

    def save_checkpoint(*arguments, **settings):
        nonlocal count
        count += 1
        if count in errors:
            raise errors[count]
        save(*arguments, **settings)

    runner.save_checkpoint = save_checkpoint


def full():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def best_of(work_dir, epoch):
    info = torch.load(work_dir / f'epoch_{epoch}.pth')['message_hub']['runtime_info']
    return Path(info['best_ckpt']).name if 'best_ckpt' in info else None


@pytest.fixture
def config(tiny_job):
    """Two epochs; the score is better after the second."""
    return tiny_job(train_cfg=dict(max_epochs=2), default_hooks=dict(checkpoint=dict(rule='less')))


def scored(runner, *scores):
    """Let validations find these scores."""
    left = list(scores)
    evaluate = runner.val_loop.evaluator.evaluate

    def score(size):
        return {**evaluate(size), 'coco/bbox_mAP': left.pop(0)}

    runner.val_loop.evaluator.evaluate = score
    return runner


BEST = 'best_coco_bbox_mAP_epoch_{}.pth'.format


def test_best_weights_that_no_checkpoint_could_name_are_removed(config, tmp_path):
    """Of each epoch: the checkpoint, the best weights, the checkpoint that names them."""
    work_dir = tmp_path / 'work'
    runner = scored(runner_of(config, work_dir), 0.5, 0.4)
    fail(runner, {3: full()})
    runner.train()
    assert names(work_dir) == [BEST(2), 'epoch_1.pth', 'epoch_2.pth']
    assert best_of(work_dir, 1) is None
    assert best_of(work_dir, 2) == BEST(2)


def test_the_best_so_far_stays_where_a_better_one_cannot_be_named(config, tmp_path):
    work_dir = tmp_path / 'work'
    runner = scored(runner_of(config, work_dir), 0.5, 0.4)
    fail(runner, {6: full()})
    with pytest.raises(CheckpointError):
        runner.train()
    assert names(work_dir) == [BEST(1), 'epoch_1.pth', 'epoch_2.pth']
    assert best_of(work_dir, 2) == BEST(1)
    # There is room again: the last validation is made up for, and finds the better one.
    scored(runner_of(config, work_dir, resume=True), 0.4).train()
    assert names(work_dir) == [BEST(2), 'epoch_1.pth', 'epoch_2.pth']
    assert best_of(work_dir, 2) == BEST(2)


def test_a_resumed_run_looks_again_for_a_best_that_could_not_be_saved(config, tmp_path):
    work_dir = tmp_path / 'work'
    runner = scored(runner_of(config, work_dir), 0.5)
    # No room for the name of the best; then killed in place of the next checkpoint.
    fail(runner, {3: full(), 4: KilledError()})
    with pytest.raises(KilledError):
        runner.train()
    assert names(work_dir) == ['epoch_1.pth']
    scored(runner_of(config, work_dir, resume=True), 0.5, 0.6).train()
    assert names(work_dir) == [BEST(1), 'epoch_1.pth', 'epoch_2.pth']


def test_best_weights_that_a_kill_left_unnamed_are_adopted_or_removed(config, tmp_path):
    work_dir = tmp_path / 'work'
    runner = scored(runner_of(config, work_dir), 0.5)
    fail(runner, {3: KilledError()})
    with pytest.raises(KilledError):
        runner.train()
    assert names(work_dir) == [BEST(1), 'epoch_1.pth']
    # Of a later epoch, as if a checkpoint of it had been there; and what somebody else keeps.
    for name in (BEST(7), 'best_model.pth'):
        (work_dir / name).write_bytes(b'weights')
    resumed = scored(runner_of(config, work_dir, resume=True), 0.5, 0.6)
    resumed.train()
    assert names(work_dir) == [BEST(1), 'best_model.pth', 'epoch_1.pth', 'epoch_2.pth']
    assert best_of(work_dir, 2) == BEST(1)


def test_a_run_that_goes_back_leaves_the_best_of_later_checkpoints(config, tmp_path):
    work_dir = tmp_path / 'work'
    scored(runner_of(config, work_dir), 0.5, 0.4).train()
    runner = scored(
        runner_of(config, work_dir, resume=True, load_from=str(work_dir / 'epoch_1.pth')), 0.6
    )
    fail(runner, {1: KilledError()})
    with pytest.raises(KilledError):
        runner.train()
    assert names(work_dir) == [BEST(2), 'epoch_1.pth', 'epoch_2.pth']


def test_validations_that_save_nothing_do_not_hide_a_full_disk(config, tmp_path):
    changes = dict(max_failures=1)
    runner = runner_of(config, tmp_path / 'work', default_hooks=dict(checkpoint=changes))
    scored(runner, 0.5, 0.6, 0.7)
    runner.train_loop._max_epochs = 4
    fail(runner, {4: full(), 5: full()})
    with pytest.raises(CheckpointError, match='newest complete one is .*epoch_1.pth'):
        runner.train()


def test_a_resumed_run_that_watches_no_score_leaves_the_best_weights(config, tmp_path):
    work_dir = tmp_path / 'work'
    scored(runner_of(config, work_dir), 0.5, 0.4).train()
    changes = dict(default_hooks=dict(checkpoint=dict(save_best=None)))
    runner = runner_of(config, work_dir, resume=True, **changes)
    runner.train_loop._max_epochs = 3
    runner.train()
    assert names(work_dir) == [BEST(2), *(f'epoch_{epoch}.pth' for epoch in (1, 2, 3))]


# Hooks for runs of two processes.
FAULTS = '''
import errno
import os
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class NoRoomForTheFirstBest(Hook):
    full = True

    def before_save_checkpoint(self, runner, checkpoint):
        if self.full and 'optimizer' not in checkpoint:
            self.full = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

@HOOKS.register_module()
class FoldersOfTheirOwn(Hook):
    """The second process is on another machine, whose folders the first one does not see."""
    def before_train(self, runner):
        if runner.rank == 1:
            runner._work_dir += '_of_the_second'
'''


@pytest.fixture
def job_of_two(tiny_job, tmp_path):
    """Writes an iteration-based job of two validations, with a hook of `FAULTS`."""
    (tmp_path / 'faults.py').write_text(FAULTS)

    def write(hook, **train_cfg):
        return tiny_job(
            train_cfg=dict(
                _delete_=True, type='IterBasedTrainLoop', max_iters=4, val_interval=2, **train_cfg
            ),
            train_dataloader=dict(sampler=dict(_delete_=True, type='InfiniteSampler')),
            param_scheduler=[dict(type='MultiStepLR', by_epoch=False, milestones=[3])],
            default_hooks=dict(checkpoint=dict(by_epoch=False, interval=2)),
            custom_imports=dict(imports=['ddetr_plugin', 'faults']),
            custom_hooks=[dict(type='ddetr_plugin.RandomStateHook'), dict(type=hook)],
        )

    return write


def test_all_processes_learn_at_once_that_there_is_no_room_for_the_best(job_of_two, tmp_path):
    """Else the others begin to save what names it, and wait for the first one for ever."""
    work_dir = tmp_path / 'work'
    run_tool('train', 2, [str(job_of_two('NoRoomForTheFirstBest')), '--skip-data-check'], tmp_path)
    # The second validation was the best by default.
    best = 'best_coco_bbox_mAP_iter_4.pth'
    assert names(work_dir) == [best, 'iter_2.pth', 'iter_4.pth']
    info = [torch.load(work_dir / f'iter_{n}.pth')['message_hub']['runtime_info'] for n in (2, 4)]
    assert 'best_ckpt' not in info[0]
    assert Path(info[1]['best_ckpt']).name == best


def test_all_processes_validate_first_or_none_whatever_they_see(job_of_two, tmp_path, monkeypatch):
    """The second one's folder has no note of the validation after the second iteration."""
    monkeypatch.syspath_prepend(tmp_path)
    work_dir, job = tmp_path / 'work', str(job_of_two('FoldersOfTheirOwn'))
    runner_of(job, work_dir, train_cfg=dict(max_iters=2)).train()
    assert (work_dir / 'last_validation').is_file()
    run_tool('train', 2, [job, '--resume', '--skip-data-check'], tmp_path)
    assert (work_dir / 'last_checkpoint').read_text().endswith('iter_4.pth')
