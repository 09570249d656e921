"""Measures training steps of mmdet's own models: on mmcv's operator, and on ours under it.

    python -m benchmarks.training.mmdet_models [--models dino mask2former] [--size 320 544]
        [--batch 2] [--device cuda] [--rounds N] [--threads N] [--out results.json]

The models are mmdet's configs (ResNet-50, 80 classes) with random weights, pictures and ground
truths; no data set is needed. A step is forward, loss and backward. Both paths take turns in one
process, after their losses were found equal. Prints a table, then JSON with times in
milliseconds, ratios and the machine.
"""

import argparse
import logging
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.batches import random_batch
from benchmarks.record import environment, publish
from benchmarks.timing import measure

# Before mmdet, which could not be imported with mmcv-lite otherwise.
from ddetr_plugin.ops import replace_mmcv_op

CONFIGS = {
    'deformable-detr': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'dino': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mask2former': 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
}
# Losses are sums over thousands of float32 samples, in another order; matching is discrete, but
# the two paths differ by far less than the costs of two pairs do.
TOLERANCE = 1e-3


def build(name, device):
    """mmdet's model, initialised at random, in training mode."""
    import mmdet
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    folder = Path(mmdet.__file__).parent / '.mim' / 'configs'
    config = Config.fromfile(folder / CONFIGS[name]).model
    config.backbone.init_cfg = None  # no download
    torch.manual_seed(0)
    model = MODELS.build(config)
    logging.disable(logging.INFO)  # else a line per parameter
    model.init_weights()
    logging.disable(logging.NOTSET)
    return model.to(device).train()


def training_step(model, inputs, samples, context):
    """Forward, loss and backward; returns every loss."""
    # DINO draws noise, Mask2Former draws points: the same ones every time.
    torch.manual_seed(1)
    model.zero_grad(set_to_none=True)
    with context():
        total, losses = model.parse_losses(model.loss(inputs, samples))
        total.backward()
    return {name: value.detach() for name, value in losses.items()}


def check_equal(ours, theirs, name):
    """Ends the program when a loss of ours is not mmcv's."""
    for loss, expected in theirs.items():
        difference = (ours[loss] - expected).abs().item() / max(expected.abs().item(), 1e-6)
        if not difference <= TOLERANCE:
            raise SystemExit(
                f'{name}: {loss} is {ours[loss].item()} with our operator and {expected.item()} '
                f"with mmcv's; expected a relative difference below {TOLERANCE}. Please report it "
                'with the output of "python -m ddetr_plugin.ops"'
            )


def main(arguments=None):
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.training.mmdet_models', description=__doc__.split('\n')[0]
    )
    parser.add_argument('--models', nargs='+', choices=CONFIGS, default=['dino', 'mask2former'])
    parser.add_argument('--size', nargs=2, type=int, default=(320, 544), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=2, help='pictures per step')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--threads', type=int, help='CPU threads; default: torch decides')
    parser.add_argument('--rounds', type=int, default=5, help='timed steps per path')
    parser.add_argument('--out', type=Path, help='also write the JSON to this file')
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    with replace_mmcv_op() as replaced:
        if not replaced:
            raise SystemExit("nothing to measure: mmcv's operator cannot be replaced, see above")
    report = {
        'environment': environment(options.device),
        'batch': options.batch,
        'size': list(options.size),
        'results': [],
    }
    print(f'{"model":18} {"operator":8} {"median ms":>10} {"times ours":>11}')
    for name in options.models:
        model = build(name, options.device)
        inputs, samples = random_batch(options.batch, *options.size, options.device)
        contexts = {'mmcv': nullcontext, 'ours': replace_mmcv_op}
        calls = {
            path: lambda m=model, i=inputs, s=samples, c=context: training_step(m, i, s, c)
            for path, context in contexts.items()
        }
        check_equal(calls['ours'](), calls['mmcv'](), name)
        result = measure(calls, options.device, max(options.rounds, 2), warm_up=1)
        for path, numbers in result.items():
            report['results'].append({'model': name, 'operator': path, **numbers})
            print(
                f'{name:18} {path:8} {numbers["median_ms"]:10.1f} {numbers["times_ours"]:11.2f}',
                flush=True,
            )
    publish(report, options.out)


if __name__ == '__main__':
    main()
