"""Measures training and inference of our detector beside stock mmdet's, part by part.

    python tools/benchmark_training.py [--sizes small r50-320x544] [--variant two-stage]
        [--inference] [--amp [force]] [--memory] [--data] [--profile] [--scaling plot.png]
        [--device cuda] [--rounds N] [--threads N] [--out results.json]

Both models have the same weights and see the same pictures; their losses (without dropout) and
scores are compared first, and a difference ends the program. Then each runs in its own process,
as its own project starts one, and they take turns, step by step: dropout as in the paper, AdamW as
in the project's config; ours keeps freed memory, as tools/train.py does.
Each `times ours` is mmdet's median time over ours. With --amp ours runs under bfloat16 autocast
and mmdet in float32. Data loading is the time of one sample in one process, from a JPEG file of
640 x 480 to what a worker hands over. With --data large photographs are loaded, too, and a short
training of the demo's config shows how long a step waits for data. With --profile torch's profiler
tells what our time goes into. With --scaling the small
model's step is measured over picture area, queries, batch and levels instead, and drawn.
"""

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from benchmarking import environment, milliseconds, publish, random_batch, spread
from data_times import PHOTOGRAPH, PICTURE, sample_times, training_waits
from step_profile import time_shares

# Before mmdet, which could not be imported with mmcv-lite otherwise.
import ddetr_plugin  # noqa: F401
from ddetr_plugin.cli.options import add_amp_option
from ddetr_plugin.engine.host_memory import keep_freed_memory
from ddetr_plugin.engine.precision import AUTO, SlowPrecisionError, require_gain

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / 'configs' / '_base_' / 'deformable_detr_r50.py'
SCHEDULE = ROOT / 'configs' / '_base_' / 'schedule_50e.py'
VARIANTS = {
    'base': {},
    'refine': dict(decoder=dict(refine=True), bbox_head=dict(share_branches=False)),
    'two-stage': dict(
        query_head=dict(
            _delete_=True,
            type='ddetr_plugin.TwoStageHead',
            num_queries=300,
            num_classes=80,
            embed_dims=256,
        ),
        decoder=dict(refine=True),
        bbox_head=dict(share_branches=False, initial_size_logit=0.0),
    ),
}
RESNET18 = dict(
    backbone=dict(depth=18),
    neck=dict(in_channels=[128, 256, 512]),
    encoder=dict(num_layers=2),
    decoder=dict(num_layers=3),
    bbox_head=dict(num_layers=3),
)
LITE0 = dict(
    backbone=dict(
        _delete_=True,
        type='ddetr_plugin.EfficientNetLite0',
        out_indices=(3, 4, 5),
        frozen_stages=3,
        norm_eval=True,
        pretrained=False,
    ),
    neck=dict(in_channels=[40, 112, 320]),
    encoder=dict(num_layers=2),
    decoder=dict(num_layers=3),
    bbox_head=dict(num_layers=3),
)
# name -> (changes of the model, pictures, (height, width))
SIZES = {
    'small': (RESNET18, 4, (256, 256)),
    'demo': (LITE0, 8, (192, 192)),
    'r50-320x544': ({}, 2, (320, 544)),
    'r50-800x1333': ({}, 1, (800, 1333)),
    'r50-800x1333-2': ({}, 2, (800, 1333)),
    'r50-800x1333-4': ({}, 4, (800, 1333)),
}
WAITING_STEPS = 60
# Relative, of float32 losses and scores.
TOLERANCE = 1e-4


def model_from(setup):
    """A model's config: the paper's, with the changes of size and variant, and single values.

    Args:
        setup: dict with `size`, `variant`, and `changes`: dotted key -> value.
    """
    from mmengine.config import Config

    config = Config.fromfile(BASE)
    config.merge_from_dict(dict(model=dict(backbone=dict(init_cfg=None))))
    for part in (SIZES[setup['size']][0], VARIANTS[setup['variant']]):
        # Merging takes `_delete_` out of what is merged.
        part = copy.deepcopy(dict(model=part))
        config = Config(Config._merge_a_into_b(part, config.to_dict()))
    config.merge_from_dict({f'model.{key}': value for key, value in setup['changes'].items()})
    return config.model


def build_pair(config, device):
    """Ours and mmdet's with the same random weights."""
    from ddetr_plugin.checkpoints import export
    from ddetr_plugin.checkpoints.parity.other_models import mmdet_model
    from ddetr_plugin.registry import MODELS

    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # else a line per parameter
    ours = MODELS.build(config)
    ours.init_weights()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    theirs = mmdet_model(config)
    theirs.load_state_dict(export(ours.state_dict(), 'mmdet'))
    logging.disable(logging.NOTSET)
    return {'ours': ours.to(device), 'mmdet': theirs.to(device)}


def without_dropout(model):
    """Switches dropout off, in any of the ways in which modules keep it; returns how to undo."""
    changed = []
    for module in model.modules():
        for name in ('p', 'dropout', 'ffn_drop'):
            value = getattr(module, name, None)
            if isinstance(value, float) and value > 0:
                changed.append((module, name, value))
                setattr(module, name, 0.0)
    return changed


def check_equal(models, inputs, samples):
    """Ends the program when losses or detections differ."""
    results = {}
    for name, model in models.items():
        changed = without_dropout(model)
        model.train()
        with torch.no_grad():
            losses = model.loss(inputs, samples)
            model.eval()
            best = model.predict(inputs, samples)[0].pred_instances.scores
        for module, attribute, value in changed:
            setattr(module, attribute, value)
        results[name] = (
            {key: float(sum(v) if isinstance(v, list) else v) for key, v in losses.items()},
            best.cpu(),
        )
    (mine, my_scores), (other, their_scores) = results['ours'], results['mmdet']
    for name, expected in other.items():
        if not abs(mine[name] - expected) <= TOLERANCE * max(abs(expected), 1e-3):
            raise SystemExit(f'{name} is {mine[name]} in ours and {expected} in mmdet')
    if not torch.allclose(my_scores, their_scores, rtol=TOLERANCE, atol=1e-6):
        raise SystemExit("ours and mmdet's scores differ")


class Clock:
    """Takes the time of the parts of a step, by what the models call anyway."""

    def __init__(self, device):
        self.device = device
        self.marks = {}

    def mark(self, name):
        """Notes now under `name`."""
        if self.device == 'cuda':
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks[name] = event
        else:
            self.marks[name] = time.perf_counter()

    def between(self, first, second):
        """Milliseconds from one mark to another."""
        begin, end = self.marks[first], self.marks[second]
        if self.device == 'cuda':
            end.synchronize()
            return begin.elapsed_time(end)
        return (end - begin) * 1e3


def watch_loss(model, clock):
    """Lets `clock` note when the forward pass ends and the losses begin."""
    owner, name = (
        (model.criterion, 'forward')
        if hasattr(model, 'criterion')
        else (model.bbox_head, 'loss_by_feat')
    )
    original = getattr(owner, name)

    def watched(*args, **kwargs):
        clock.mark('loss')
        return original(*args, **kwargs)

    setattr(owner, name, watched)


def make_optimiser(model, fused):
    """The project's own optimiser: AdamW in the paper's groups, and clipping."""
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper

    config = Config.fromfile(SCHEDULE).optim_wrapper
    if not fused:  # as mmdet's config has it
        config.optimizer.pop('fused', None)
        config.pop('constructor', None)
    logging.disable(logging.WARNING)
    wrapper = build_optim_wrapper(model, config)
    logging.disable(logging.NOTSET)
    return wrapper


def autocast(device, amp):
    """bfloat16 autocast, or nothing."""
    return torch.autocast(device, torch.bfloat16) if amp else contextlib.nullcontext()


def training_step(model, wrapper, inputs, samples, clock, amp):
    """One step; `clock` gets its marks."""
    clock.mark('begin')
    with autocast(inputs.device.type, amp):
        total, _ = model.parse_losses(model.loss(inputs, samples))
    clock.mark('backward')
    total.backward()
    clock.mark('optimiser')
    wrapper.step()
    wrapper.zero_grad()
    clock.mark('end')


def work(options):
    """A process with one model: per line of input, one step or prediction; prints its times."""
    # Whatever else prints goes to stderr.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    if options.worker == 'ours' and options.device == 'cpu':
        keep_freed_memory()  # as tools/train.py does; mmdet's does not
    setup = json.loads(options.setup)
    config = model_from(setup)
    model = build_pair(config, 'cpu')[options.worker].to(options.device)
    inputs, samples = random_batch(setup['batch'], *setup['shape'], options.device)
    clock = Clock(options.device)
    if options.inference:
        model.eval()
    else:
        model.train()
        watch_loss(model, clock)
        wrapper = make_optimiser(model, options.worker == 'ours')
    print('ready', file=answers, flush=True)
    for line in sys.stdin:
        amp = json.loads(line)
        if options.inference:
            with torch.inference_mode(), autocast(options.device, amp):
                taken = milliseconds(partial(model.predict, inputs, samples), options.device)
            times = {'inference': taken}
        else:
            training_step(model, wrapper, inputs, samples, clock, amp)
            times = {
                'step': clock.between('begin', 'end'),
                'forward': clock.between('begin', 'loss'),
                'matching + loss': clock.between('loss', 'backward'),
                'backward': clock.between('backward', 'optimiser'),
                'optimiser': clock.between('optimiser', 'end'),
            }
        print(json.dumps(times), file=answers, flush=True)


def time_in_turns(setup, options):
    """Part -> name -> list of milliseconds; each model in a process of its own, taking turns.

    Args:
        setup: dict for `model_from`, with `batch` and `shape` of the pictures.
        options: of the command line.
    """
    # Threads of the process that waits for its turn must not spin on the other's cores.
    environment = {'GOMP_SPINCOUNT': '2000', **os.environ}
    workers = {}
    for name in ('mmdet', 'ours'):
        command = [sys.executable, '-W', 'ignore', __file__, '--worker', name]
        command += ['--setup', json.dumps(setup), '--device', options.device]
        command += ['--threads', str(torch.get_num_threads())]
        command += ['--inference'] * options.inference
        workers[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    runs = {'mmdet': ('mmdet', False), 'ours': ('ours', False)}
    if options.amp:
        runs['ours, bfloat16'] = ('ours', True)
    times = {}
    try:
        for name, worker in workers.items():
            if worker.stdout.readline().strip() != 'ready':
                raise SystemExit(f'the process with the model of {name} failed; see above')
        for number in range(options.rounds + 2):
            for run, (name, amp) in runs.items():
                print(json.dumps(amp), file=workers[name].stdin, flush=True)
                answer = json.loads(workers[name].stdout.readline())
                for part, taken in answer.items() if number >= 2 else ():
                    times.setdefault(part, {}).setdefault(run, []).append(taken)
    finally:
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()
    return times


def peak_memory(size, options, name, checkpointing=False):
    """Peak memory of one training step in MiB, in a process of its own."""
    command = [sys.executable, __file__, '--memory-of', name, '--sizes', size]
    command += ['--variant', options.variant, '--device', options.device]
    if options.threads:
        command += ['--threads', str(options.threads)]
    if checkpointing:
        command += ['--checkpointing']
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'measuring memory failed:\n{done.stderr[-2000:]}')
    return float(done.stdout.split()[-1])


def measure_memory(options):
    """The process of `peak_memory`: prints MiB that two steps need beyond the built model."""
    size = options.sizes[0]
    config = model_from(dict(size=size, variant=options.variant, changes={}))
    if options.checkpointing:
        config.encoder.layer.with_cp = config.decoder.layer.with_cp = True
    model = build_pair(config, 'cpu')[options.memory_of].to(options.device).train()
    _, batch, (height, width) = SIZES[size]
    inputs, samples = random_batch(batch, height, width, options.device)
    wrapper = make_optimiser(model, options.memory_of == 'ours')
    before = forget_peak() if options.device == 'cpu' else 0
    for _ in range(2):
        training_step(model, wrapper, inputs, samples, Clock(options.device), False)
    if options.device == 'cuda':
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print((resident('VmHWM') - before) / 2**10)


def resident(name):
    """KiB of this process in memory, as Linux counts them: `VmRSS` now, `VmHWM` at most so far."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{name}:'):
            return int(line.split()[1])
    raise SystemExit('peak memory on a CPU is measured on Linux only')


def forget_peak():
    """Gives freed memory back and starts a new `VmHWM`, so that building the models is not seen.

    Returns:
        KiB in memory now.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')
    return resident('VmRSS')


def measure_shares(setup, options):
    """What a step or prediction of ours spends its time on; see `time_shares`."""
    model = build_pair(model_from(setup), 'cpu')['ours'].to(options.device)
    inputs, samples = random_batch(setup['batch'], *setup['shape'], options.device)
    if not options.inference:
        wrapper, clock = make_optimiser(model.train(), True), Clock(options.device)
        step = partial(training_step, model, wrapper, inputs, samples, clock, False)
        return time_shares(step, options.device)
    with torch.inference_mode():
        return time_shares(partial(model.eval().predict, inputs, samples), options.device)


def measure_waits(options):
    """What `training_waits` finds, in a process of its own: a Runner changes global state."""
    command = [sys.executable, __file__, '--waits']
    if options.threads:
        command += ['--threads', str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'the short training failed:\n{done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])


SWEEPS = {
    'picture side': (128, 192, 256, 384, 512),
    'queries': (100, 300, 600, 900),
    'batch': (1, 2, 4, 8),
    'levels': (2, 3, 4, 5),
}


def measure_scaling(options):
    """Step times of the small model, ours and mmdet's, over one quantity at a time."""
    rows = []
    for quantity, values in SWEEPS.items():
        for value in values:
            side, batch, changes = 256, 2, {}
            if quantity == 'picture side':
                side = value
            elif quantity == 'queries':
                changes['query_head.num_queries'] = value
            elif quantity == 'batch':
                batch = value
            else:
                kept = min(value, 3)
                changes = {
                    'neck.num_outs': value,
                    'encoder.num_levels': value,
                    'encoder.layer.self_attn.num_levels': value,
                    'decoder.layer.cross_attn.num_levels': value,
                    'neck.in_channels': [128, 256, 512][-kept:],
                    'backbone.out_indices': [1, 2, 3][-kept:],
                }
            setup = dict(size='small', variant=options.variant, changes=changes)
            setup.update(batch=batch, shape=(side, side))
            times = time_in_turns(setup, options)['step']
            row = {'quantity': quantity, 'value': value}
            for name, values in times.items():
                row[f'{name}_ms'] = round(statistics.median(values), 2)
                row[f'{name}_quartiles_ms'] = spread(values)['quartiles_ms']
            rows.append(row)
            print(
                f'{quantity:14} {value:5} mmdet {row["mmdet_ms"]:9.1f} ms, ours '
                f'{row["ours_ms"]:9.1f} ms, {row["mmdet_ms"] / row["ours_ms"]:.2f}x',
                flush=True,
            )
    return rows


def draw_scaling(rows, path):
    """One panel per quantity; pictures by their area, in which the tokens are linear."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, (axes,) = plt.subplots(1, len(SWEEPS), figsize=(4 * len(SWEEPS), 3.5), squeeze=False)
    for axis, quantity in zip(axes, SWEEPS):
        part = [row for row in rows if row['quantity'] == quantity]
        x = [row['value'] for row in part]
        if quantity == 'picture side':
            x = [value**2 for value in x]
        for name in ('mmdet', 'ours'):
            axis.plot(x, [row[f'{name}_ms'] / 1e3 for row in part], marker='o', label=name)
        axis.set_xlabel('pixels' if quantity == 'picture side' else quantity)
        axis.set_ylim(bottom=0)
        axis.set_ylabel('seconds a step')
        axis.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def rows_of(size, batch, times):
    """Table rows from lists of milliseconds."""
    rows = []
    for part, runs in times.items():
        ours = statistics.median(runs['ours'])
        reference = statistics.median(runs['mmdet'])
        for name, values in runs.items():
            median = statistics.median(values)
            rows.append(
                {
                    'size': size,
                    'batch': batch,
                    'part': part,
                    'implementation': name,
                    **spread(values),
                    'times_ours': round(median / ours, 2),
                    'mmdet_over_it': round(reference / median, 2),
                }
            )
    return rows


def add_rows(report, rows):
    """Puts table rows into the report and prints them."""
    for row in rows:
        report['results'].append(row)
        print(
            f'{row["size"]:16} {row["part"]:16} {row["implementation"]:24} '
            f'{row["median_ms"]:10.1f} {row["mmdet_over_it"]:11.2f}',
            flush=True,
        )


def main():
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--sizes', nargs='+', choices=SIZES, default=['small', 'r50-320x544'])
    parser.add_argument('--variant', choices=VARIANTS, default='two-stage')
    parser.add_argument('--inference', action='store_true', help='predictions instead of training')
    parser.add_argument('--batch', type=int, help="pictures per step; default: the size's own")
    add_amp_option(parser, 'also time ours in bfloat16')
    parser.add_argument('--memory', action='store_true', help='also measure peak memory')
    parser.add_argument('--data', action='store_true', help='also photographs, and data_time')
    parser.add_argument('--profile', action='store_true', help='also what our time goes into')
    parser.add_argument('--scaling', type=Path, metavar='PNG', help='draw the growth of a step')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--threads', type=int, help='CPU threads; default: torch decides')
    parser.add_argument('--rounds', type=int, default=7, help='timed steps per model')
    parser.add_argument('--out', type=Path, help='also write the JSON to this file')
    parser.add_argument('--worker', choices=['ours', 'mmdet'], help=argparse.SUPPRESS)
    parser.add_argument('--setup', help=argparse.SUPPRESS)
    parser.add_argument('--memory-of', choices=['ours', 'mmdet'], help=argparse.SUPPRESS)
    parser.add_argument('--checkpointing', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--waits', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.amp == AUTO and options.device == 'cpu':
        try:
            require_gain(torch.bfloat16)
        except SlowPrecisionError as error:
            parser.error(str(error))
    from mmdet.utils import register_all_modules

    register_all_modules()
    if options.memory_of:
        return measure_memory(options)
    if options.worker:
        return work(options)
    if options.waits:
        return print(json.dumps(training_waits(WAITING_STEPS)))
    report = {
        'environment': environment(options.device),
        'variant': options.variant,
        'results': [],
    }
    if options.scaling:
        report['results'] = measure_scaling(options)
        draw_scaling(report['results'], options.scaling)
        return publish(report, options.out)
    print(f'{"size":16} {"part":16} {"model":24} {"median ms":>10} {"mmdet / it":>11}')
    for size in options.sizes:
        _, batch, (height, width) = SIZES[size]
        batch = options.batch or batch
        setup = dict(size=size, variant=options.variant, changes={})
        setup.update(batch=batch, shape=(height, width))
        models = build_pair(model_from(setup), options.device)
        check_equal(models, *random_batch(batch, height, width, options.device))
        del models
        add_rows(report, rows_of(size, batch, time_in_turns(setup, options)))
        if not options.inference:
            times = sample_times((height, width), PICTURE, options.rounds)
            add_rows(report, rows_of(size, 1, {'data loading': times}))
        if options.profile:
            shares = measure_shares(setup, options)
            report['results'].append(
                {'size': size, 'part': 'profile', 'implementation': 'ours', 'shares': shares}
            )
            for group, share in shares.items():
                print(f'{size:16} {"profile":16} {group:35} {share:6.1%}', flush=True)
        if options.memory:
            for name, checkpointing in (('mmdet', False), ('ours', False), ('ours', True)):
                label = name + (', checkpointing' if checkpointing else '')
                mebibytes = peak_memory(size, options, name, checkpointing)
                report['results'].append(
                    {'size': size, 'part': 'memory', 'implementation': label, 'MiB': mebibytes}
                )
                print(f'{size:16} {"peak memory":16} {label:24} {mebibytes:8.0f} MiB', flush=True)
    if options.data:
        times = sample_times((384, 384), PHOTOGRAPH, options.rounds)
        add_rows(report, rows_of('photograph, 384', 1, {'data loading': times}))
        waits = measure_waits(options)
        report['results'].append(
            {'size': 'demo', 'part': 'waiting for data', 'implementation': 'ours', **waits}
        )
        print(
            f'a training of the demo waits {waits["data_time_ms"]:.1f} ms of each '
            f'{waits["step_ms"]:.0f} ms for data, {waits["longest_wait_ms"]:.1f} at most'
        )
    publish(report, options.out)
    return None


if __name__ == '__main__':
    main()
