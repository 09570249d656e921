"""DETR, DETR-DC5 and Deformable DETR on the same data, backbone and schedule: AP over epochs.

    python -m benchmarks.convergence --out DIR [--data FOLDER] [--steps N] [--image-size N]
        [--seeds N]

Trains every model of models.py with every seed, one after another, and leaves in DIR
table.md, convergence.json, convergence.png and, of each training, its config MODEL/seed_N.py and
what it logged, MODEL/seed_N/*/vis_data/scalars.json.
The same command goes on where it was interrupted, and repeats nothing that is finished.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.convergence.models import MODELS, make_model
from benchmarks.figures import draw_accuracy, spread
from benchmarks.processes import tool_command
from benchmarks.record import environment
from benchmarks.table.accuracy import read_curve
from ddetr_plugin.apis.demo_data import make_demo_data
from ddetr_plugin.apis.own_data import (
    DEMO_CONFIG,
    DEMO_DATA,
    add_clock,
    class_names,
    dataset_settings,
    find_data,
    read_config,
)

DONE = 'finished'


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.convergence',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--out', type=Path, required=True, help='folder for logs and results')
    add('--data', type=Path, help='a data set in COCO format; default: the scenes of the demo')
    add('--models', nargs='+', choices=MODELS, default=list(MODELS))
    add('--seeds', type=int, default=3, help='trainings of each model')
    add('--steps', type=int, help="iterations of a training; default: the demo's")
    add('--validations', type=int, default=10, help='during a training')
    add('--image-size', type=int, default=160, help='pictures are resized to fit this square')
    add('--queries', type=int, default=60)
    add('--batch-size', type=int, default=4)
    add('--lr', type=float, help="of all models; default: the demo's")
    args = parser.parse_args(arguments)
    for name in ('seeds', 'steps', 'validations', 'image_size', 'queries', 'batch_size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name.replace("_", "-")} must be at least 1, got {value}')
    return parser, args


def make_config(name, seed, args, train, val):
    """The Config of one training.

    Args:
        name: of MODELS.
        seed: of initialisation and order.
        args: of the command line.
        train, val: check_dataset.Split.
    """
    config = read_config(DEMO_CONFIG, None, None, args.steps)
    classes = class_names(train)
    config.model = make_model(name, config.model, len(classes), args.queries)
    # Digits are not what they are when mirrored; what else there is, is.
    flip = [dict(type='RandomFlip', prob=0.5)] if args.data else []
    for loader, split in (
        ('train_dataloader', train),
        ('val_dataloader', val),
        ('test_dataloader', val),
    ):
        dataset = config[loader].dataset
        dataset.update(dataset_settings(split, classes))
        for step in dataset.pipeline:
            if step['type'] == 'Resize':
                step['scale'] = (args.image_size, args.image_size)
        if loader == 'train_dataloader':
            dataset.pipeline = [*dataset.pipeline[:-1], *flip, dataset.pipeline[-1]]
    config.train_dataloader.batch_size = args.batch_size
    if args.lr is not None:
        config.optim_wrapper.optimizer.lr = args.lr
    for evaluator in ('val_evaluator', 'test_evaluator'):
        config[evaluator].ann_file = str(val.ann_file.resolve())
    interval = max(1, config.train_cfg.max_iters // args.validations)
    config.train_cfg.val_interval = interval
    config.default_hooks.checkpoint.update(interval=interval, save_best=None)
    # Else mmengine logs AP over epochs, which a loop of iterations does not count.
    config.default_hooks.logger.log_metric_by_epoch = False
    config.randomness = dict(seed=seed)
    config.pop('work_dir', None)
    add_clock(config)
    return config


def train_once(config, folder):
    """Trains in `folder`, unless that is done.

    Raises:
        SystemExit: the folder holds another training, or this one failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the folder: in it, the Runner writes its own version under the same name.
    file, text = folder.with_suffix('.py'), config.pretty_text
    if file.exists() and file.read_text() != text:
        sys.exit(
            f'error: {folder} holds a training with other settings; remove it, or name another '
            'folder with --out'
        )
    file.write_text(text)
    if (folder / DONE).exists():
        return
    command = tool_command('train', file, '--work-dir', folder, '--resume')
    with open(folder / 'output.txt', 'a', encoding='utf-8') as output:
        done = subprocess.run(command, stdout=output, stderr=output)
    if done.returncode:
        sys.exit(f'error: the training in {folder} failed; {folder}/output.txt says why')
    # The numbers are what stays.
    for path in folder.rglob('*'):
        if path.is_file() and path.name != 'scalars.json':
            path.unlink()
    (folder / DONE).touch()


def curve_in_epochs(folder, pictures, batch_size):
    """[(epoch, metrics)] of a training that counts iterations."""
    return [(step * batch_size / pictures, metrics) for step, metrics in read_curve(folder)]


def markdown(curves):
    """One table: AP and AP_S of three validations, mean and range.

    They are those nearest to a quarter, a half and all of the training; the titles say where in it
    they really were.
    """
    times = spread(next(iter(curves.values())), 'mAP')[0]
    shown = sorted({min(times, key=lambda t: abs(t - part * times[-1])) for part in (0.25, 0.5, 1)})
    titles = [f'{ap} after {t / times[-1]:.0%}' for ap in ('AP', 'AP_S') for t in shown]
    lines = [f'| model | seeds | {" | ".join(titles)} |', '|' + '---|' * (len(titles) + 2)]
    for name, runs in curves.items():
        cells = []
        for metric in ('mAP', 'mAP_s'):
            found = {t: values for t, *values in zip(*spread(runs, metric))}
            for t in shown:
                mean, low, high = (100 * value for value in found.get(t, (math.nan,) * 3))
                cells.append('–' if math.isnan(mean) else f'{mean:.1f} ({low:.1f} to {high:.1f})')
        lines.append(f'| {name} | {len(runs)} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def main(arguments=None):
    parser, args = parse_args(arguments)
    try:
        if args.data is None:
            make_demo_data(DEMO_DATA)
        data = find_data(args.data or DEMO_DATA, [(args.image_size, args.image_size)])
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if data.held_out:
        parser.error('the data set has no annotations/instances_val.json to validate on')
    data = data.place(args.out)
    data.write(args.out)
    train, val = data.train, data.val
    pictures = len(train.content['images'])
    curves = {}
    # All models with a seed before the next seed: what is there can be compared at any time.
    for seed in range(args.seeds):
        for name in args.models:
            folder = args.out / name / f'seed_{seed}'
            print(f'{name}, seed {seed}: {folder}', flush=True)
            train_once(make_config(name, seed, args, train, val), folder)
            runs = curves.setdefault(name, [])
            runs.append(curve_in_epochs(folder, pictures, args.batch_size))
    table = markdown(curves)
    (args.out / 'table.md').write_text(table, encoding='utf-8')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    settings = {key: value for key, value in vars(args).items() if key != 'out'}
    content = {'environment': environment(device), 'settings': settings, 'curves': curves}
    text = json.dumps(content, indent=1, default=str) + '\n'
    (args.out / 'convergence.json').write_text(text, encoding='utf-8')
    draw_accuracy(curves, args.out / 'convergence.png')
    print(table)
