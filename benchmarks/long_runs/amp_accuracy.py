"""Train the demo in float32 and in mixed precision, and compare what comes out.

    python -m benchmarks.long_runs.amp_accuracy [--iters N] [--work-dir work_dirs/amp]

Runs tools/demo.py once for each precision: float32, bfloat16, and float16 with scaled gradients;
on a CPU that is slower with one of them, with the products of rounded_products.py.
Each has a folder of its own, in which an interrupted run goes on, and a complete one is only
evaluated again. Exit status 1 if an mAP is further than ALLOWED from that of float32, or if that is
below LEAST, so that they could hardly differ.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

import ddetr_plugin  # noqa: F401  before mmdet
from benchmarks.processes import module_command, tool, tool_command, variables
from ddetr_plugin.engine.optimizers.autocast import DTYPES
from ddetr_plugin.engine.precision import time_ratio

ROUNDED_PRODUCTS = 'benchmarks.long_runs.rounded_products'
ALLOWED = 0.02
LEAST = 0.2
AUTOCAST = ['--cfg-options', 'optim_wrapper.type=ddetr_plugin.AutocastOptimWrapper']
OPTIONS = {
    'float32': [],
    'bfloat16': [*AUTOCAST, 'optim_wrapper.dtype=bfloat16'],
    'float16': [*AUTOCAST, 'optim_wrapper.dtype=float16'],
}


def is_slow(precision):
    """Whether what would train is a CPU that is slower in 16 bits than in float32."""
    return not torch.cuda.is_available() and time_ratio(DTYPES[precision]) > 1


def train(precision, work_dir, iters):
    """Runs the demo; returns its metrics.

    Raises:
        subprocess.CalledProcessError: it failed, and has said why.
    """
    folder = work_dir / precision
    arguments = ['--work-dir', folder, *OPTIONS[precision]]
    if iters is not None:
        arguments = ['--iters', iters, *arguments]
    if precision != 'float32' and is_slow(precision):
        command = module_command(ROUNDED_PRODUCTS, tool('demo'), *arguments)
    else:
        command = tool_command('demo', *arguments)
    subprocess.run(command, check=True, env=variables())
    return json.loads((folder / 'metrics.json').read_text())


def compare(metrics):
    """Prints a table of {precision: metrics}; returns whether all are near float32."""
    exact = metrics['float32']['bbox_mAP']
    print('| precision | mAP | difference | training |\n|---|---|---|---|')
    for name, found in metrics.items():
        difference = found['bbox_mAP'] - exact
        print(
            f'| {name} | {found["bbox_mAP"]:.3f} | {difference:+.3f} | '
            f'{found["train_seconds"] / 60:.1f} min |'
        )
    # mAPs are written with three digits.
    return all(abs(found['bbox_mAP'] - exact) < ALLOWED + 1e-6 for found in metrics.values())


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.long_runs.amp_accuracy', description=__doc__.split('\n')[0]
    )
    parser.add_argument('--iters', type=int, help="default: the demo's own length")
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/amp'))
    args = parser.parse_args(arguments)
    try:
        metrics = {name: train(name, args.work_dir, args.iters) for name in OPTIONS}
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    exact = metrics['float32']['bbox_mAP']
    near = compare(metrics)
    if exact < LEAST:
        sys.exit(f'error: mAP {exact:.3f} is too low to tell; give more --iters')
    if not near:
        sys.exit(f'error: mixed precision changes mAP by more than {ALLOWED}')


if __name__ == '__main__':
    main()
