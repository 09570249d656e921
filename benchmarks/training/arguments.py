"""The command line of `python -m benchmarks.training`."""

import argparse
from pathlib import Path

import torch

from benchmarks.training.models import SIZES, VARIANTS
from ddetr_plugin.cli.options import add_amp_option
from ddetr_plugin.engine.precision import AUTO, SlowPrecisionError, require_gain


def parse_args(description, arguments=None):
    """The options; ends the program where they cannot be, as with 16 bits on a CPU they slow down.

    Args:
        description: of the command.
        arguments: list of str; default: those of this process.
    """
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.training',
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--sizes', nargs='+', choices=SIZES, default=['small', 'r50-320x544'])
    add('--variant', choices=VARIANTS, default='two-stage')
    add('--inference', action='store_true', help='predictions instead of training')
    add('--batch', type=int, help="pictures per step; default: the size's own")
    add_amp_option(parser, 'also time ours in bfloat16')
    add('--memory', action='store_true', help='also measure peak memory')
    add('--data', action='store_true', help='also photographs, and data_time')
    add('--profile', action='store_true', help='also what our time goes into')
    add('--scaling', type=Path, metavar='PNG', help='draw the growth of a step')
    add('--device', default='cpu', choices=['cpu', 'cuda'])
    add('--threads', type=int, help='CPU threads; default: torch decides')
    add('--rounds', type=int, default=7, help='timed steps per model')
    add('--out', type=Path, help='also write the JSON to this file')
    options = parser.parse_args(arguments)
    if options.amp == AUTO and options.device == 'cpu':
        try:
            require_gain(torch.bfloat16)
        except SlowPrecisionError as error:
            parser.error(str(error))
    return options
