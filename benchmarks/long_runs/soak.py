"""Train and predict for long, and fail if memory grows.

    python -m benchmarks.long_runs.soak [--minutes 60] [--predictions 1000]
        [--config CONFIG] [--work-dir DIR]

Trains the demo's model (validations and checkpoints included) on its scenes resized to many sizes,
until the minutes are over; then detects objects on pictures of a thousand random sizes. In between
it reads the memory of this process and of its data workers, without the freed blocks that the C
library keeps, whose number goes up and down by a hundred MiB, and without files such as libraries,
of which each program that uses them counts a share. A training counts from its first
validation on, whose data workers stay. The first quarter of each part is for warming up; after it,
memory may grow by no more than ALLOWED_MIB, from the median of the second quarter to the median of
the last. Exit status 1 if it grows by more. Linux only.
"""

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.apis import Detector
from ddetr_plugin.apis.config_reading import load_config
from ddetr_plugin.apis.demo_data import make_demo_data
from ddetr_plugin.apis.launch import build_runner
from ddetr_plugin.config_files import find_config

# isort: split
from mmengine.hooks import Hook

DEMO_CONFIG = find_config('digits')
DEMO_DATA = Path('data/demo')
# Some times what was measured without a leak; see docs/reliability.md.
ALLOWED_MIB = 48
SCALES = [(width, height) for width in (128, 160, 192, 224) for height in (128, 176, 208)]
SIDES = (16, 640)  # of the images that are predicted, pixels
LEAST_SAMPLES = 8


def resident_mib():
    """Memory of this process and its children in MiB, files left out; what they share counts once.

    Blocks that this process has freed are given back first.

    Raises:
        OSError: this is no Linux, or an old one.
    """
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # of glibc alone
    if trim is not None:
        trim(0)
    own = os.getpid()
    total = 0
    for pid in [own, *_descendants(own)]:
        try:
            text = Path(f'/proc/{pid}/smaps_rollup').read_text()
        except OSError:
            # A data worker may just have ended; this process has not.
            if pid == own:
                raise
            continue
        sizes = {name: words[0] for name, *words in map(str.split, text.splitlines()[1:])}
        if 'Pss_Anon:' not in sizes:
            raise OSError('Linux 5.4 or newer is needed')
        total += sum(int(sizes[name]) for name in ('Pss_Anon:', 'Pss_Shmem:'))
    return total / 1024


def _descendants(pid):
    found = []
    for file in Path(f'/proc/{pid}/task').glob('*/children'):
        # A thread, or a data worker, may just have ended.
        with contextlib.suppress(OSError):
            for child in file.read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found


def growth_mib(samples):
    """By how much memory grew from the second quarter of the samples to the last, in MiB.

    Medians: neither a single peak nor the warming up in the first quarter counts.

    Raises:
        ValueError: there are too few samples to tell.
    """
    if len(samples) < LEAST_SAMPLES:
        raise ValueError(
            f'{len(samples)} readings of memory do not show growth, {LEAST_SAMPLES} are needed; '
            'run for longer'
        )
    quarter = len(samples) // 4
    return statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter])


class MemoryHook(Hook):
    """Reads the memory after every `interval`-th step, and ends the training.

    Args:
        seconds: how long to train, from the first step on; longer where too few readings are made.
        interval: steps between two readings.
    """

    priority = 'VERY_LOW'

    def __init__(self, seconds, interval=10):
        self.samples = []
        self.seconds = seconds
        self.interval = interval
        self._end = None
        self._validated = False

    def after_val(self, runner):
        """Forget what was read before the first validation, whose data workers stay."""
        if not self._validated:
            self.samples.clear()
        self._validated = True

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._end = self._end or time.monotonic() + self.seconds
        if runner.iter % self.interval == 0:
            self.samples.append(resident_mib())
        if time.monotonic() >= self._end and len(self.samples) >= LEAST_SAMPLES:
            runner.train_loop.stop_training = True


def make_config(path, work_dir):
    """The config to train with: `path`, or else the demo's with scenes of many sizes."""
    config = load_config(path or DEMO_CONFIG, work_dir=work_dir)
    if path is None:
        make_demo_data(DEMO_DATA)
        for step in config.train_dataloader.dataset.pipeline:
            if step.type == 'Resize':
                step.clear()
                step.update(type='RandomChoiceResize', scales=SCALES, keep_ratio=False)
        config.train_cfg.max_iters = 10**9  # until the time is over
        config.train_cfg.val_interval = 100
    return config


def train(config, seconds, interval):
    """Trains; returns the readings of memory, and the Runner."""
    runner = build_runner(config)
    memory = MemoryHook(seconds, interval)
    runner.register_hook(memory)
    runner.train()
    return memory.samples, runner


def detect_many(detector, count):
    """Detects on `count` images of noise, each of another size; returns readings of memory."""
    rng = np.random.default_rng(0)
    samples = []
    every = max(1, count // 100)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'noise.bmp')
        for number in range(1, count + 1):
            height, width = rng.integers(SIDES[0], SIDES[1] + 1, 2)
            cv2.imwrite(str(path), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            detector.one(path)
            if number % every == 0:
                samples.append(resident_mib())
    return samples


def judge(name, samples, report):
    """Prints the growth of one part, notes it in `report`, and returns whether it is allowed."""
    growth = growth_mib(samples)
    report[name] = dict(growth_mib=round(growth, 1), samples_mib=[round(x, 1) for x in samples])
    grows = growth > ALLOWED_MIB
    print(
        f'{name}: {samples[0]:.0f} MiB at first, {samples[-1]:.0f} MiB in the end, grew by '
        f'{growth:.1f} MiB after the first quarter; {ALLOWED_MIB} are allowed'
        f'{": A LEAK" if grows else ""}'
    )
    return not grows


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.long_runs.soak', description=__doc__.split('\n')[0]
    )
    parser.add_argument('--minutes', type=float, default=60, help='of training')
    parser.add_argument('--predictions', type=int, default=1000)
    parser.add_argument('--interval', type=int, default=10, help='steps between two readings')
    parser.add_argument('--config', help='default: the demo, with scenes of many sizes')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/soak'))
    args = parser.parse_args(arguments)
    try:
        resident_mib()
    except OSError as error:
        parser.error(f'memory is read from /proc, as Linux has it: {error}')
    config = make_config(args.config, args.work_dir)
    report = dict(minutes=args.minutes, predictions=args.predictions, allowed_mib=ALLOWED_MIB)
    try:
        samples, runner = train(config, args.minutes * 60, args.interval)
        report['steps'] = runner.iter
        steady = judge('training', samples, report)
        detector = Detector.from_model(runner.model, config)
        samples = detect_many(detector, args.predictions)
        steady &= judge('predictions', samples, report)
    except ValueError as error:
        sys.exit(f'error: {error}')
    (args.work_dir / 'soak.json').write_text(json.dumps(report) + '\n')
    if not steady:
        sys.exit(1)


if __name__ == '__main__':
    main()
