"""Size, cost, speed and accuracy of detectors, beside the published numbers.

    python -m benchmarks.table --table --out DIR              # every row of the paper's table
    python -m benchmarks.table CONFIG [CONFIG ...] --out DIR

Writes DIR/table.md, DIR/benchmark.json (with hardware, versions and commit), DIR/cost.png and, with
--logs, DIR/accuracy.png. A row that cannot be built here stays in the table and says why.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from mmengine.config import Config

from benchmarks.figures import draw_accuracy, draw_cost
from benchmarks.record import environment, installed_versions
from benchmarks.table.accuracy import evaluate_checkpoint, read_accuracy, read_curve, read_unit
from benchmarks.table.detector_timing import PARTS, PRECISIONS, build_model, measure_apart
from benchmarks.table.flops import (
    average_multiply_adds,
    count_parameters,
    model_multiply_adds,
    picture_sizes,
)
from benchmarks.table.markdown import markdown
from benchmarks.table.published_results import PUBLISHED, find
from ddetr_plugin.config_files import find_config
from ddetr_plugin.engine import precision

# That the models come from.
PACKAGES = ('mmdet', 'mmengine', 'mmcv', 'mmcv-lite', 'numpy', 'pycocotools')
# The mean area of COCO's pictures, resized to a short side of 800 and a long one of at most 1333:
# 165 pictures of val2017 make 800 x 1117.
TYPICAL = (800, 1117)
FULL = (800, 1333)
# Times on a CPU at the full size take minutes a row.
CPU_SIZE = (320, 544)
GROWTH = (0.5, 0.75, 1.25)  # of the full size's sides, for the figure


def size_argument(text):
    """(height, width) of '800x1333'."""
    found = re.fullmatch(r'(\d+)x(\d+)', text)
    if not found or '0' in found.groups():
        raise argparse.ArgumentTypeError(f'a size is HEIGHTxWIDTH, such as 800x1333; got {text!r}')
    return int(found[1]), int(found[2])


def pair_argument(text):
    """(name, Path) of 'NAME=PATH'."""
    name, separator, path = text.partition('=')
    if not separator or not name or not path:
        raise argparse.ArgumentTypeError(f'expected NAME=PATH, got {text!r}')
    return name, Path(path)


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.table',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('configs', nargs='*', type=Path, help='config files')
    add('--table', action='store_true', help='every row of published_results.py')
    add('--out', type=Path, required=True, help='folder for the results')
    group = parser.add_argument_group('multiply-adds')
    add = group.add_argument
    add('--sizes', nargs='+', type=size_argument, default=[FULL], metavar='HxW')
    add(
        '--images',
        type=Path,
        help='annotations in COCO format, or a folder of pictures, to average over; default: one '
        f'picture of {TYPICAL[0]} x {TYPICAL[1]}, the mean of COCO',
    )
    add('--max-images', type=int, default=100, help='of --images, the first so many by id or name')
    group = parser.add_argument_group('times')
    add = group.add_argument
    add('--skip-timing', action='store_true')
    add('--device', choices=['cpu', 'cuda'], default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--timing-size', type=size_argument, metavar='HxW', help='800x1333; on a CPU 320x544')
    add('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    add(
        '--precisions',
        nargs='+',
        choices=PRECISIONS,
        help='default: both, but float32 alone on a CPU that is slower in 16 bits',
    )
    add('--batches', nargs='+', type=int, default=[1, 4], help='pictures per prediction')
    add('--train-batch', type=int, default=2, help='pictures per training step')
    add('--rounds', type=int, help='timed calls; default 20, on a CPU 3')
    add('--threads', type=int, help='CPU threads; default: torch decides')
    group = parser.add_argument_group('accuracy; NAME is that of a config without .py')
    add = group.add_argument
    add(
        '--results',
        nargs='+',
        type=pair_argument,
        default=[],
        metavar='NAME=FILE',
        help='metrics of a test or training (JSON, scalars.json or work folder)',
    )
    add(
        '--checkpoints',
        nargs='+',
        type=pair_argument,
        default=[],
        metavar='NAME=FILE',
        help="weights to evaluate on the config's test data",
    )
    add(
        '--logs',
        nargs='+',
        type=pair_argument,
        default=[],
        metavar='LABEL=WORK_DIR',
        help='trainings to draw over epochs',
    )
    args = parser.parse_args(arguments)
    if bool(args.configs) == args.table:
        parser.error('give config files, or --table for all rows of the published table')
    for path in args.configs:
        if not path.is_file():
            parser.error(f'config {path} does not exist')
    stems = {p.stem for p in args.configs} or {row.config for row in PUBLISHED}
    for name, path in (*args.results, *args.checkpoints):
        if name not in stems:
            parser.error(f'{name} is no row of this table; its rows are {", ".join(sorted(stems))}')
        if not path.exists():
            parser.error(f'{path} does not exist')
    on_gpu = args.device == 'cuda'
    args.timing_size = args.timing_size or (FULL if on_gpu else CPU_SIZE)
    args.rounds = args.rounds or (20 if on_gpu else 3)
    return parser, args


def choose_precisions(device):
    """Those that are worth timing where none is asked for."""
    ratio = precision.time_ratio(torch.bfloat16) if device == 'cpu' else 0
    if ratio <= 1:
        return list(PRECISIONS)
    print(
        f'Only float32 is timed: in bfloat16 this CPU takes {ratio:.1f} times as long for a matrix '
        f'product and a convolution; --precisions {" ".join(PRECISIONS)} times both',
        file=sys.stderr,
    )
    return ['float32']


def name_size(size):
    return f'{size[0]} x {size[1]}'


def reason_of(error):
    """One line of what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__


def measure_cost(row, config, args, mean_sizes):
    """Adds parameters and multiply-adds to a row; returns the latter over the picture's size."""
    model = build_model(config).eval()
    trainable, everything = count_parameters(model)
    row.update(params_m=trainable / 1e6, parameters=trainable, parameters_with_frozen=everything)
    # A model that cannot run here has a size all the same.
    by_size, row['gflops'], row['multiply_adds'] = {}, {}, {}
    for size in args.sizes:
        counts = model_multiply_adds(model, *size)
        by_size[size] = sum(counts.values())
        row['gflops'][name_size(size)] = by_size[size] / 1e9
        row['multiply_adds'][name_size(size)] = counts
    row['gflops_mean'] = average_multiply_adds(model, mean_sizes) / 1e9
    for factor in GROWTH:
        size = tuple(round(side * factor) for side in args.sizes[0])
        by_size[size] = sum(model_multiply_adds(model, *size).values())
    return by_size


def measure_accuracy(row, path, args):
    """Adds what --results and --checkpoints say of a row."""
    results, checkpoints = dict(args.results), dict(args.checkpoints)
    if row['config'] in results:
        row['accuracy'] = read_accuracy(results[row['config']])
    elif row['config'] in checkpoints:
        checkpoint = checkpoints[row['config']]
        row['accuracy'] = evaluate_checkpoint(path, checkpoint, args.out / 'tests' / path.stem)


def measure_row(path, args, mean_sizes):
    """One row of the report, and its cost over the picture's size.

    What fails is a reason in the row: a table of many systems is worth having without one.
    """
    published = find(path.stem)
    row = {'config': path.stem, 'method': published.method if published else path.stem}
    row['published'] = published and published._asdict()
    reasons, costs = [], {}
    if not path.is_file():
        return dict(row, reasons=[f'{path} does not exist']), costs

    def attempt(function, *arguments):
        try:
            return function(*arguments)
        except Exception as error:  # mmdet's parts raise anything, and the other rows go on
            reasons.append(reason_of(error))
            return None

    config = attempt(Config.fromfile, path)
    if config is not None:
        costs = attempt(measure_cost, row, config, args, mean_sizes) or {}
        attempt(measure_accuracy, row, path, args)
        # What cannot run once has said why.
        if not args.skip_timing and 'gflops_mean' in row:
            setup = dict(device=args.device, size=args.timing_size, parts=args.parts)
            setup.update(batches=args.batches, train_batch=args.train_batch)
            setup.update(precisions=args.precisions, rounds=args.rounds, threads=args.threads)
            row['timings'] = attempt(measure_apart, path, setup) or []
    return dict(row, reasons=reasons), costs


def main(arguments=None):
    parser, args = parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    mean_sizes, mean_over = [TYPICAL], f'one picture of {name_size(TYPICAL)}, the mean of COCO'
    try:
        if args.images is not None:
            mean_sizes = picture_sizes(args.images, args.max_images)
            mean_over = f'the mean of {len(mean_sizes)} pictures of {args.images.name}'
        curves = {label: read_curve(path) for label, path in args.logs}
        units = sorted({read_unit(path) for _, path in args.logs})
        if len(units) > 1:
            raise ValueError(
                '--logs has trainings whose validations count epochs and others that count '
                'iterations; draw them apart'
            )
    except (OSError, ValueError, KeyError) as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    paths = args.configs or [find_config(row.config) for row in PUBLISHED]
    report = {
        'environment': environment(args.device) | installed_versions(PACKAGES),
        'sizes': [name_size(size) for size in args.sizes],
        'mean_over': mean_over,
        'timing': None,
        'rows': [],
    }
    if not args.skip_timing:
        args.precisions = args.precisions or choose_precisions(args.device)
        report['timing'] = {'size': name_size(args.timing_size), 'rounds': args.rounds}
    costs = {}
    for path in paths:
        row, by_size = measure_row(path, args, mean_sizes)
        report['rows'].append(row)
        print(f'{path.stem}: {"; ".join(row["reasons"]) or "measured"}', file=sys.stderr)
        if by_size:
            costs[row['method']] = by_size
    table = markdown(report)
    (args.out / 'table.md').write_text(table, encoding='utf-8')
    text = json.dumps(report, indent=1)
    (args.out / 'benchmark.json').write_text(text + '\n', encoding='utf-8')
    if costs:
        draw_cost(costs, args.out / 'cost.png')
    if curves:
        draw_accuracy(curves, args.out / 'accuracy.png', *units)
    print(table)
