"""Measures training and inference of our detector beside stock mmdet's, part by part.

    python -m benchmarks.training [--sizes small r50-320x544] [--variant two-stage]
        [--inference] [--amp [force]] [--memory] [--data] [--profile] [--scaling plot.png]
        [--device cuda] [--rounds N] [--threads N] [--out results.json]

Both models have the same weights and see the same images; their losses (without dropout) and
scores are compared first, and a difference ends the program. Then each runs in its own process,
as its own project starts one, and they take turns, step by step: dropout as in the paper, AdamW as
in the project's config; ours keeps freed memory, as tools/train.py does.
Each `times ours` is mmdet's median time over ours. With --amp ours runs under bfloat16 autocast
and mmdet in float32. Data loading is the time of one sample in one process, from a JPEG file of
640 x 480 to what a worker hands over. With --data large photographs are loaded, too, and a short
training of the demo's config shows how long a step waits for data. With --profile torch's profiler
tells what our time goes into. With --scaling the small model's step is measured over image area,
queries, batch and levels instead, and drawn.
"""

import torch

# Before mmdet, which could not be imported with mmcv-lite otherwise.
import ddetr_plugin  # noqa: F401
from benchmarks.batches import random_batch
from benchmarks.figures import draw_scaling
from benchmarks.record import environment, publish
from benchmarks.training.arguments import parse_args
from benchmarks.training.data_times import PHOTOGRAPH, PICTURE, sample_times, waits_apart
from benchmarks.training.memory import peak_memory
from benchmarks.training.models import build, check_equal, model_config, setup_of
from benchmarks.training.rows import HEADER, add_rows, rows_of
from benchmarks.training.scaling import measure_scaling
from benchmarks.training.step_profile import model_shares
from benchmarks.training.turns import time_in_turns


def measure_size(size, options, report):
    """Adds what is measured of one size to the report, and prints it.

    Raises:
        SystemExit: ours and mmdet's losses or scores differ, or a process failed.
    """
    setup = setup_of(size, options.variant, options.batch)
    models = {name: model.to(options.device) for name, model in build(model_config(setup)).items()}
    check_equal(models, *random_batch(setup.batch, *setup.shape, options.device))
    del models
    add_rows(report, rows_of(size, setup.batch, time_in_turns(setup, options)))
    if not options.inference:
        times = sample_times(setup.shape, PICTURE, options.rounds)
        add_rows(report, rows_of(size, 1, {'data loading': times}))
    if options.profile:
        shares = model_shares(setup, options.device, options.inference)
        report['results'].append(
            {'size': size, 'part': 'profile', 'implementation': 'ours', 'shares': shares}
        )
        for group, share in shares.items():
            print(f'{size:16} {"profile":16} {group:35} {share:6.1%}', flush=True)
    if options.memory:
        for name, checkpointing in (('mmdet', False), ('ours', False), ('ours', True)):
            label = name + (', checkpointing' if checkpointing else '')
            mebibytes = peak_memory(name, setup, options.device, checkpointing)
            report['results'].append(
                {'size': size, 'part': 'memory', 'implementation': label, 'MiB': mebibytes}
            )
            print(f'{size:16} {"peak memory":16} {label:24} {mebibytes:8.0f} MiB', flush=True)


def measure_data(options, report):
    """Adds times of photographs, and of a training that waits for them, and prints them."""
    times = sample_times((384, 384), PHOTOGRAPH, options.rounds)
    add_rows(report, rows_of('photograph, 384', 1, {'data loading': times}))
    waits = waits_apart()
    report['results'].append(
        {'size': 'demo', 'part': 'waiting for data', 'implementation': 'ours', **waits}
    )
    print(
        f'a training of the demo waits {waits["data_time_ms"]:.1f} ms of each '
        f'{waits["step_ms"]:.0f} ms for data, {waits["longest_wait_ms"]:.1f} at most'
    )


def main(arguments=None):
    """Measures, prints, writes."""
    options = parse_args(__doc__, arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    from mmdet.utils import register_all_modules

    register_all_modules()
    report = {
        'environment': environment(options.device),
        'variant': options.variant,
        'results': [],
    }
    if options.scaling:
        report['results'] = measure_scaling(options)
        options.scaling.parent.mkdir(parents=True, exist_ok=True)
        draw_scaling(report['results'], options.scaling)
        publish(report, options.out)
        return
    print(HEADER)
    for size in options.sizes:
        measure_size(size, options, report)
    if options.data:
        measure_data(options, report)
    publish(report, options.out)
