"""A training that is killed, whenever that is, loses nothing."""

import copy
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ddetr_plugin.engine.work_dir.durable_files import what_is_broken

# Of each of the two loops; four more are of one of two processes, or both.
KILLS = 13
TICKS = os.sysconf('SC_CLK_TCK')
SERVER = Path(__file__).with_name('training_server.py')


class Server:
    """The other end of `training_server.py`, which starts with the first training."""

    process = None

    def ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, config, work_dir, resume, **more):
        """The process id of a training."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, SERVER, config],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        return self.ask(config=str(config), work_dir=str(work_dir), resume=resume, **more)

    def train(self, config, work_dir, resume, kill_after=None, **death):
        """Exit status and CPU seconds of a training that is left alone, or killed after some."""
        pid = self.start(config, work_dir, resume, result=f'{work_dir}.result', **death)
        if kill_after is not None:
            # By its own clock: moments are as random where other processes are busy.
            while (used := cpu_seconds(pid)) is not None and used < kill_after:
                time.sleep(0.002)
            os.kill(pid, signal.SIGKILL)
        return self.ask(wait=pid)

    def train_two(self, config, work_dir, resume, deaths=()):
        """Exit statuses of two processes, `deaths` by rank; None for one that hangs."""
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = str(free.getsockname()[1])
        pids = []
        for rank in range(2):
            environment = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
            for name, value in (('RANK', rank), ('WORLD_SIZE', 2)):
                environment[name] = environment[f'LOCAL_{name}'] = str(value)
            death = dict(deaths).get(rank)
            result = None if rank else f'{work_dir}.result'
            pids.append(
                self.start(
                    config, work_dir, resume, result=result, die_in=death, environment=environment
                )
            )
        ends = [self.ask(wait=pid) for pid in pids]
        return [end and end[0] for end in ends]


def cpu_seconds(pid):
    """What a running process has used; None if it has ended."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return None if fields[0] == 'Z' else (int(fields[11]) + int(fields[12])) / TICKS


@pytest.fixture(scope='module')
def server():
    server = Server()
    yield server
    if server.process is not None:
        server.process.stdin.close()
        server.process.wait()


def logged(work_dir):
    return Path(f'{work_dir}.log').read_text()


def checkpoints(work_dir):
    return sorted(path.name for path in work_dir.glob('*.pth*'))


def assert_every_checkpoint_is_complete(work_dir):
    for path in work_dir.glob('*.pth'):
        assert what_is_broken(path) is None
        torch.load(path)
    note = work_dir / 'last_checkpoint'
    if note.exists():
        assert Path(note.read_text()).is_file()


def assert_same_bits(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same_bits(value, other[key])
    elif isinstance(one, list):
        for value, its_other in zip(one, other, strict=True):
            assert_same_bits(value, its_other)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


EPOCHS = dict(
    train_cfg=dict(max_epochs=3),
    default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)),
)
ITERATIONS = dict(
    train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=7, val_interval=4),
    train_dataloader=dict(sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True)),
    param_scheduler=[dict(type='MultiStepLR', by_epoch=False, milestones=[5])],
    default_hooks=dict(checkpoint=dict(max_keep_ckpts=1, by_epoch=False, interval=2)),
    custom_hooks=[
        dict(type='ddetr_plugin.RandomStateHook'),
        dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1),
    ],
)


@pytest.mark.parametrize(
    'changes', [EPOCHS, ITERATIONS], ids=['epochs', 'iterations with averaged weights']
)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    server, tiny_job, tmp_path, changes
):
    config = tiny_job(**copy.deepcopy(changes))
    whole = tmp_path / 'whole'
    status, duration = server.train(config, whole, resume=False)
    assert status == 0, logged(whole)
    expected = torch.load(f'{whole}.result')
    assert len(expected['averages']) == (changes is ITERATIONS)

    moments = random.Random(7)
    kills = torn = runs = 0
    while kills < KILLS:
        runs += 1
        work_dir = tmp_path / f'run_{runs}'
        for attempt in range(7):
            if attempt == 6:
                how = {}
            else:
                how = moments.choice(
                    [
                        dict(kill_after=moments.uniform(0, duration)),
                        dict(die_at=moments.randint(1, 25)),
                        dict(die_in_write=moments.randint(1, 3)),
                    ]
                )
            status, _ = server.train(config, work_dir, resume=True, **how)
            assert_every_checkpoint_is_complete(work_dir)
            if status == 0:
                break
            assert status == -signal.SIGKILL, logged(work_dir)
            kills += 1
            if 'die_in_write' in how:
                assert [path.name for path in work_dir.glob('*.partial')]
                torn += 1
        assert_same_bits(torch.load(f'{work_dir}.result'), expected)
        assert checkpoints(work_dir) == checkpoints(whole)
    assert torn


def test_where_one_of_two_processes_is_killed_the_other_ends_and_both_resume(
    server, tiny_job, tmp_path
):
    config = tiny_job(**copy.deepcopy(ITERATIONS))
    whole, work_dir = tmp_path / 'whole', tmp_path / 'killed'
    assert server.train_two(config, whole, resume=False) == [0, 0], logged(whole)
    killed = -signal.SIGKILL
    # The second: while the first process writes, and the other waits for the outcome.
    for deaths, ends in (
        ({1: ['after_train_iter', 4]}, [1, killed]),
        ({0: ['before_save_checkpoint', 1]}, [killed, 1]),
        ({0: ['after_train_iter', 1], 1: ['after_train_iter', 1]}, [killed, killed]),
    ):
        assert server.train_two(config, work_dir, True, deaths) == ends, logged(work_dir)
        assert_every_checkpoint_is_complete(work_dir)
        assert checkpoints(work_dir)
    assert server.train_two(config, work_dir, resume=True) == [0, 0], logged(work_dir)
    one, other = (torch.load(f'{folder}.result') for folder in (work_dir, whole))
    assert_same_bits(one, other)
    assert checkpoints(work_dir) == checkpoints(whole)
