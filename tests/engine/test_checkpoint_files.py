"""Checkpoints on full disks, beside broken ones, and after a kill at a bad moment."""

import errno
import hashlib
import json
import logging
import os
import resource
import stat
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ddetr_plugin.engine import CheckpointError
from ddetr_plugin.engine.resuming.resumption import resume_path
from ddetr_plugin.engine.work_dir.durable_files import PARTIAL, what_is_broken, write_text


@contextmanager
def full_disk():
    """No file grows: stands for a full disk, with the same kind of error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FullDisk(Hook):
    """The disk is full from the end of one epoch to the end of another."""

    def __init__(self, first, last):
        self.first, self.last = first, last
        self.disk = full_disk()

    def after_train_epoch(self, runner):
        if runner.epoch + 1 == self.first:
            self.disk.__enter__()
        if runner.epoch + 1 == self.last:
            self.disk.__exit__(None, None, None)


class KilledError(Exception):
    """Stands for the signal that ends a run."""


class KillAt(Hook):
    """Ends the run at a stage of an epoch."""

    def __init__(self, stage, epoch):
        setattr(self, stage, self.end)
        self.epoch = epoch

    def end(self, runner, *arguments, **more):
        if runner.epoch == self.epoch:
            raise KilledError


def runner_of(path, work_dir, *hooks, resume=False, **changes):
    config = Config.fromfile(path)
    config.merge_from_dict(changes)
    config.work_dir = str(work_dir)
    config.experiment_name = f'{work_dir}-{resume}'
    config.resume = resume
    runner = Runner.from_cfg(config)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def names(work_dir, pattern='*.pth*'):
    return sorted(path.name for path in work_dir.glob(pattern))


def assert_same_weights(one, other):
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.fixture
def two_epochs(tiny_job):
    return tiny_job(train_cfg=dict(max_epochs=2, val_begin=3))


@pytest.fixture
def trained(two_epochs, tmp_path):
    """(config file, work_dir, model) of two epochs without validation."""
    runner = runner_of(two_epochs, tmp_path / 'work')
    runner.train()
    return two_epochs, tmp_path / 'work', runner.model


def test_a_full_disk_leaves_the_old_checkpoint_and_the_training_goes_on(tiny_job, tmp_path):
    work_dir = tmp_path / 'work'
    path = tiny_job(
        default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)),
        # By this name mmengine finds one that is there already, with another work folder.
        visualizer=dict(name='of this test'),
    )
    seen = []

    class Look(Hook):
        def before_train_epoch(self, runner):
            seen.append((names(work_dir, 'epoch_*'), (work_dir / 'last_checkpoint').read_text()))

    runner = runner_of(path, work_dir, FullDisk(2, 3), train_cfg=dict(val_begin=4))
    write_text(work_dir / 'last_checkpoint', 'none yet')
    runner.register_hook(Look())
    errors = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    one = str(work_dir / 'epoch_1.pth')
    assert seen == [([], 'none yet'), (['epoch_1.pth'], one), (['epoch_1.pth'], one)]
    assert len(errors) == 2
    assert 'Numbers cannot be logged' in errors[1]
    assert 'could not be written' in errors[0] and f'newest complete one is {one}' in errors[0]
    assert names(work_dir) == ['epoch_3.pth']
    (scalars,) = work_dir.glob('*/vis_data/scalars.json')
    steps = [json.loads(line)['step'] for line in scalars.read_text().splitlines()]
    assert steps == [4, 8]
    info = torch.load(work_dir / 'epoch_3.pth')['message_hub']['runtime_info']
    assert info['keep_ckpt_ids'] == [3]


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(trained, tmp_path):
    path, _, model = trained
    work_dir = tmp_path / 'full'
    hook = FullDisk(2, 99)
    try:
        with pytest.raises(
            CheckpointError, match=r'newest complete one is .*epoch_1.pth.*--resume'
        ):
            runner_of(path, work_dir, hook).train()
    finally:
        hook.disk.__exit__(None, None, None)
    assert names(work_dir) == ['epoch_1.pth']
    resumed = runner_of(path, work_dir, resume=True)
    resumed.train()
    assert_same_weights(resumed.model, model)


def test_so_many_failures_in_a_row_stop_the_training(tiny_job, tmp_path):
    hook = FullDisk(1, 99)
    changes = dict(default_hooks=dict(checkpoint=dict(max_failures=1)))
    runner = runner_of(tiny_job(train_cfg=dict(val_begin=4)), tmp_path / 'work', hook, **changes)
    try:
        with pytest.raises(CheckpointError, match='newest complete one is None'):
            runner.train()
    finally:
        hook.disk.__exit__(None, None, None)
    assert runner.epoch == 1


@pytest.mark.parametrize('code', [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_synced_is_no_full_disk(tmp_path, monkeypatch, code):
    sync = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, 'fsync', fsync)
    with nullcontext() if code == errno.EINVAL else pytest.raises(OSError, match='put'):
        write_text(tmp_path / 'note', 'text')
    assert (tmp_path / 'note').read_text() == 'text'


@pytest.fixture
def folder(tmp_path):
    """A work folder with two checkpoints; what is in them does not matter."""
    path = tmp_path / 'work'
    path.mkdir()
    for epoch in (1, 2):
        torch.save({'state_dict': {'weight': torch.randn(100)}}, path / f'epoch_{epoch}.pth')
    (path / 'last_checkpoint').write_text(str(path / 'epoch_2.pth'))
    return path


@pytest.mark.parametrize('fault', ['none', 'truncated', 'empty note', 'no note', 'moved', 'newer'])
def test_a_run_resumes_from_the_newest_complete_checkpoint(folder, tmp_path, fault):
    one, two = (folder / f'epoch_{epoch}.pth' for epoch in (1, 2))
    expected = two
    if fault == 'truncated':
        two.write_bytes(two.read_bytes()[:-100])
        expected = one
    elif fault == 'empty note':
        (folder / 'last_checkpoint').write_text('')
    elif fault == 'no note':
        (folder / 'last_checkpoint').unlink()
    elif fault == 'moved':
        folder = folder.rename(tmp_path / 'moved')
        expected = folder / 'epoch_2.pth'
    elif fault == 'newer':
        # Of another run that was in this folder before.
        two.rename(folder / 'epoch_50.pth')
        expected = one
    assert resume_path(folder, folder, None) == str(expected)


def test_a_truncated_checkpoint_of_mmengine_costs_one_epoch_and_no_bit(trained):
    path, work_dir, model = trained
    two = work_dir / 'epoch_2.pth'
    two.write_bytes(two.read_bytes()[:-100])
    resumed = runner_of(path, work_dir, resume=True)
    resumed.train()
    assert_same_weights(resumed.model, model)
    assert what_is_broken(two) is None


def test_a_broken_checkpoint_that_was_asked_for_is_refused(folder):
    two = folder / 'epoch_2.pth'
    content = bytearray(two.read_bytes())
    content[len(content) // 2] ^= 1
    two.write_bytes(content)
    with pytest.raises(ValueError, match='checksum .* the newest complete one is .*epoch_1.pth'):
        resume_path(folder, folder, str(two))


def test_where_no_checkpoint_is_complete_nothing_starts_anew_in_silence(tmp_path):
    for epoch in (1, 2):
        (tmp_path / f'epoch_{epoch}.pth').write_bytes(b'PK')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    with pytest.raises(ValueError, match='no other checkpoint in .* is complete'):
        resume_path(tmp_path, tmp_path, None)
    assert resume_path(tmp_path / 'new', tmp_path / 'new', None) is None


def test_files_of_an_older_torch_are_judged_by_loading_them(tmp_path):
    path = tmp_path / 'old.pth'
    torch.save({'x': torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert what_is_broken(path) is None
    path.write_bytes(path.read_bytes()[:-5])
    assert what_is_broken(path) is not None


def test_a_validation_that_a_kill_took_is_made_up_for(tiny_job, tmp_path):
    path = tiny_job(train_cfg=dict(max_epochs=2))
    whole = runner_of(path, tmp_path / 'whole')
    whole.train()
    work_dir = tmp_path / 'killed'
    # Within the validations of epoch 1 and of the last one.
    for epoch in (1, 2):
        with pytest.raises(KilledError):
            runner_of(path, work_dir, KillAt('after_val_iter', epoch), resume=epoch > 1).train()
    partial = work_dir / f'epoch_7.pth{PARTIAL}'
    partial.write_bytes(b'half')
    resumed = runner_of(path, work_dir, resume=True)
    resumed.train()
    assert names(work_dir) == names(tmp_path / 'whole')
    for key in ('best_score', 'best_ckpt'):
        one, other = (Path(str(r.message_hub.get_info(key))).name for r in (whole, resumed))
        assert one == other


def test_a_checkpoint_saved_after_a_made_up_validation_resumes_with_the_same_bits(
    tiny_job, tmp_path
):
    """Iteration-based: its random state is that of the iteration, not of the restart."""
    path = tiny_job(
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4, val_interval=2),
        train_dataloader=dict(
            num_workers=1,
            persistent_workers=True,
            sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
        ),
        param_scheduler=[dict(type='MultiStepLR', by_epoch=False, milestones=[3])],
        default_hooks=dict(checkpoint=dict(by_epoch=False, interval=2)),
    )
    whole = runner_of(path, tmp_path / 'whole')
    whole.train()
    work_dir = tmp_path / 'killed'

    class Kill(Hook):
        def __init__(self, stage):
            setattr(self, stage, self.end)

        def end(self, runner, *arguments, **more):
            raise KilledError

    # In the validation of iteration 2; when resumed, after that validation.
    for resume, stage in ((False, 'after_val_iter'), (True, 'after_train_iter')):
        with pytest.raises(KilledError):
            runner_of(path, work_dir, Kill(stage), resume=resume).train()
    resumed = runner_of(path, work_dir, resume=True)
    resumed.train()
    assert_same_weights(resumed.model, whole.model)


def test_a_checkpoint_from_within_an_epoch_is_not_validated(tiny_job, tmp_path):
    changes = dict(default_hooks=dict(checkpoint=dict(by_epoch=False, interval=3)))
    path = tiny_job(train_cfg=dict(max_epochs=2), **changes)
    with pytest.raises(KilledError):
        runner_of(path, tmp_path / 'work', KillAt('after_train_epoch', 1)).train()
    validated = []

    class Look(Hook):
        def before_val(self, runner):
            validated.append(runner.epoch)

    runner_of(path, tmp_path / 'work', Look(), resume=True).train()
    assert validated == [2]


def test_the_published_model_is_named_by_its_own_checksum(tiny_job, tmp_path):
    changes = dict(default_hooks=dict(checkpoint=dict(published_keys=['meta', 'state_dict'])))
    path = tiny_job(train_cfg=dict(max_epochs=1, val_begin=2), **changes)
    runner_of(path, tmp_path / 'work').train()
    (published,) = (tmp_path / 'work').glob('epoch_1-*.pth')
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert published.stem == f'epoch_1-{digest[:8]}'
    assert torch.load(published).keys() == {'meta', 'state_dict'}
