"""A training that is killed, whenever that is, loses nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ddetr_plugin.engine.durable_files import what_is_broken

KILLS = 30
TICKS = os.sysconf('SC_CLK_TCK')
SERVER = Path(__file__).with_name('training_server.py')


class Server:
    """The other end of `training_server.py`."""

    def __init__(self, config):
        self.process = subprocess.Popen(
            [sys.executable, SERVER, config],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def train(self, config, work_dir, resume, kill_after=None, **death):
        """Exit status and CPU seconds of a training that is left alone, or killed after some."""
        pid = self.ask(
            config=str(config),
            work_dir=str(work_dir),
            resume=resume,
            result=f'{work_dir}.result',
            **death,
        )
        if kill_after is not None:
            # By its own clock: moments are as random where other processes are busy.
            while (used := cpu_seconds(pid)) is not None and used < kill_after:
                time.sleep(0.002)
            os.kill(pid, signal.SIGKILL)
        return self.ask(wait=pid)


def cpu_seconds(pid):
    """What a running process has used; None if it has ended."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return None if fields[0] == 'Z' else (int(fields[11]) + int(fields[12])) / TICKS


@pytest.fixture
def start_server():
    """Starts servers that are warm for a config."""
    servers = []

    def start(config):
        servers.append(Server(config))
        return servers[-1]

    yield start
    for server in servers:
        server.process.stdin.close()
        server.process.wait()


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


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(start_server, tiny_job, tmp_path):
    config = tiny_job(
        train_cfg=dict(max_epochs=3),
        default_hooks=dict(checkpoint=dict(max_keep_ckpts=1)),
    )
    server = start_server(config)
    whole = tmp_path / 'whole'
    status, duration = server.train(config, whole, resume=False)
    assert status == 0, Path(f'{whole}.log').read_text()
    expected = torch.load(f'{whole}.result')

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
            assert status == -signal.SIGKILL, Path(f'{work_dir}.log').read_text()
            kills += 1
            if 'die_in_write' in how:
                assert [path.name for path in work_dir.glob('*.partial')]
                torn += 1
        assert_same_bits(torch.load(f'{work_dir}.result'), expected)
        assert checkpoints(work_dir) == checkpoints(whole)
    assert torn
