"""How a step of the small model grows: over image area, queries, batch and levels."""

import statistics

from benchmarks.timing import spread
from benchmarks.training.models import Setup
from benchmarks.training.turns import time_in_turns

SWEEPS = {
    'picture side': (128, 192, 256, 384, 512),
    'queries': (100, 300, 600, 900),
    'batch': (1, 2, 4, 8),
    'levels': (2, 3, 4, 5),
}


def sweep_setup(quantity, value, variant):
    """The Setup in which one of SWEEPS has a value; without it, 2 images of 256 x 256."""
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
            'neck.in_channels': [128, 256, 512][-kept:],
            'backbone.out_indices': [1, 2, 3][-kept:],
        }
    return Setup('small', variant, batch, (side, side), changes)


def measure_scaling(options):
    """Step times of the small model, ours and mmdet's, over one quantity at a time.

    Args:
        options: of the command line, see `time_in_turns`; and `variant`.

    Returns:
        list of rows: dicts with quantity, value, and medians and quartiles in milliseconds.
    """
    rows = []
    for quantity, values in SWEEPS.items():
        for value in values:
            times = time_in_turns(sweep_setup(quantity, value, options.variant), options)['step']
            row = {'quantity': quantity, 'value': value}
            for name, taken in times.items():
                row[f'{name}_ms'] = round(statistics.median(taken), 2)
                row[f'{name}_quartiles_ms'] = spread(taken)['quartiles_ms']
            rows.append(row)
            print(
                f'{quantity:14} {value:5} mmdet {row["mmdet_ms"]:9.1f} ms, ours '
                f'{row["ours_ms"]:9.1f} ms, {row["mmdet_ms"] / row["ours_ms"]:.2f}x',
                flush=True,
            )
    return rows
