"""Two trainings in one work folder: the second stops, whatever became of the first."""

import errno
import fcntl
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from ddetr_plugin.cli import run_command
from ddetr_plugin.engine import AtomicCheckpointHook, WorkDirInUseError
from ddetr_plugin.engine.work_dir.durable_files import PARTIAL
from ddetr_plugin.engine.work_dir.lock import LOCK, lock_work_dir


@contextmanager
def another_process(folder):
    """A process that holds the lock, and has a child of its own, as a training has workers."""
    ready, tell = os.pipe()
    holder = os.fork()
    if holder == 0:
        lock_work_dir(folder)
        worker = os.fork()
        if worker:
            os.write(tell, f'{worker}\n'.encode())
        signal.pause()
        os._exit(0)
    worker = int(os.read(ready, 20))
    try:
        yield holder
    finally:
        for pid in (holder, worker):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(ready)
        os.close(tell)


def test_a_second_training_stops_before_it_writes_anything(tiny_job, tmp_path, capsys):
    work_dir = tmp_path / 'work'
    with another_process(work_dir) as holder:
        with pytest.raises(SystemExit) as stop:
            run_command('train', [str(tiny_job())])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert f'{work_dir} is in use: process {holder} on ' in message
        assert 'Traceback' not in message
        assert [path.name for path in work_dir.iterdir()] == [LOCK]


def test_a_work_folder_that_cannot_be_written_is_named_with_the_remedy(tiny_job, capsys):
    path = tiny_job()
    with pytest.raises(SystemExit) as stop:
        run_command('train', [str(path), '--work-dir', f'{path}/work'])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert f'nothing can be written to {path}/work: ' in message
    assert '--work-dir' in message


def test_a_second_runner_leaves_the_files_of_the_first_alone(tiny_job, tmp_path):
    work_dir = tmp_path / 'work'
    runner = Runner.from_cfg(Config.fromfile(tiny_job()))
    partial = work_dir / f'epoch_1.pth{PARTIAL}'
    partial.write_bytes(b'half')
    with another_process(work_dir):
        with pytest.raises(WorkDirInUseError, match='is in use'):
            runner.train()
        assert partial.is_file()


def test_a_lock_ends_with_its_process_and_not_with_the_workers(tmp_path):
    with another_process(tmp_path) as holder:
        with pytest.raises(WorkDirInUseError):
            lock_work_dir(tmp_path)
        os.kill(holder, signal.SIGKILL)
        # Killed, though not yet waited for.
        while Path(f'/proc/{holder}/stat').read_text().rpartition(')')[2].split()[0] != 'Z':
            time.sleep(0.001)
        os.close(lock_work_dir(tmp_path))


def test_a_process_may_train_again_where_it_has_trained(tmp_path):
    one, other = lock_work_dir(tmp_path), lock_work_dir(tmp_path)
    os.close(one)
    os.close(other)


def test_validations_and_tests_need_no_lock(tmp_path):
    runner = SimpleNamespace(_train_loop={}, _resume=False, work_dir=str(tmp_path))
    AtomicCheckpointHook().before_run(runner)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path, monkeypatch):
    def lockf(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'lockf', lockf)
    assert lock_work_dir(tmp_path) is None
