"""The soak test finds leaks, and nothing else."""

import json
import mmap

import numpy as np
import pytest
from forked import run_forked

from benchmarks.long_runs import soak

MIB = 2**20


def readings(count, work):
    """The memory of this process after each of `count` calls."""
    samples = []
    for number in range(count):
        work(number)
        samples.append(soak.resident_mib())
    return samples


def new_memory(mib):
    """From the kernel: what malloc gives may be what this process had before, and freed."""
    memory = mmap.mmap(-1, mib * MIB)
    np.frombuffer(memory, np.uint8)[:] = 1
    return memory


def test_a_real_leak_is_found_and_peaks_and_warming_up_are_none():
    kept = []
    leaking = readings(24, lambda n: kept.append(new_memory(6)))
    # The median of the last 6 readings is 12 calls after that of the second 6.
    assert soak.growth_mib(leaking) == pytest.approx(12 * 6, abs=6)
    assert soak.growth_mib(leaking) > soak.ALLOWED_MIB
    # A peak in the end is none where one was before: freed memory may be kept for reuse.
    warm = []

    def work(number):
        if number < 6:
            warm.append(new_memory(20))
        new_memory(100 if number in (3, 23) else 1)

    assert abs(soak.growth_mib(readings(24, work))) < soak.ALLOWED_MIB / 4


def test_memory_of_data_workers_counts_and_what_they_share_counts_once():
    import multiprocessing

    shared = np.ones(200 * MIB, np.uint8)
    before = soak.resident_mib()
    context = multiprocessing.get_context('fork')
    ready, done = context.Event(), context.Event()

    def worker():
        own = np.ones(100 * MIB, np.uint8)
        ready.set()
        done.wait()
        del own

    process = context.Process(target=worker)
    process.start()
    assert ready.wait(20)
    added = soak.resident_mib() - before
    done.set()
    process.join()
    assert added == pytest.approx(100, abs=30)
    assert shared.all()


def test_too_short_a_run_says_so():
    with pytest.raises(ValueError, match='3 readings.*run for longer'):
        soak.growth_mib([1.0, 2.0, 3.0])


@pytest.mark.parametrize('leaks', [False, True])
def test_a_short_soak_passes_and_fails_where_predicting_leaks(
    tiny_job, tmp_path, monkeypatch, leaks
):
    config = tiny_job(
        train_cfg=dict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=10**6, val_interval=10**6
        ),
        train_dataloader=dict(sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True)),
    )
    kept = []
    one = soak.Detector.one

    def leaking(*arguments, **options):
        kept.append(new_memory(12))
        return one(*arguments, **options)

    if leaks:
        monkeypatch.setattr(soak.Detector, 'one', leaking)
    monkeypatch.setattr(soak, 'SIDES', (16, 64))
    work_dir = tmp_path / 'soak'
    run = ['--minutes', '0', '--interval', '1', '--predictions', '20']
    arguments = [*run, '--config', str(config), '--work-dir', str(work_dir)]
    if leaks:
        with pytest.raises(SystemExit) as stopped:
            soak.main(arguments)
        assert stopped.value.code == 1
    else:
        soak.main(arguments)
    report = json.loads((work_dir / 'soak.json').read_text())
    assert report['steps'] == len(report['training']['samples_mib'])
    assert (report['predictions']['growth_mib'] > soak.ALLOWED_MIB) == leaks


FORK = """
import multiprocessing
import torch
from ddetr_plugin.engine.host_memory import keep_freed_memory

keep_freed_memory()
blocks = [torch.ones(2**18) for _ in range(200)]  # 1 MiB each
del blocks
context = multiprocessing.get_context('fork')
ready, done = context.Event(), context.Event()

def wait():
    ready.set()
    done.wait()

process = context.Process(target=wait)
process.start()
assert ready.wait(60)
blocks = [torch.ones(2**18) for _ in range(200)]
text = open(f'/proc/{process.pid}/smaps_rollup').read()
print(next(int(line.split()[1]) for line in text.splitlines() if line[:14] == 'Private_Dirty:'))
done.set()
process.join()
"""


def test_a_forked_data_worker_does_not_keep_what_the_training_had_freed(tmp_path):
    (tmp_path / 'training').mkdir()
    (tmp_path / 'training' / 'worker.py').write_text(FORK)
    done = run_forked('training.worker', [], paths=[tmp_path])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < 100
