"""The console command `ddetr`; the scripts in tools/ run the same commands.

Importing this, and each command, loads no mmdet: it comes when a command runs.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from ddetr_plugin.version import __version__

__all__ = ['COMMANDS', 'main', 'make_parser', 'run_command']

COMMANDS = dict(
    train='train a model from a config',
    test='evaluate a checkpoint on the test data of a config',
    predict='detect objects on images',
    demo='train on your own images, or on scenes that are made; evaluate; draw',
    check='check a data set before training on it',
    convert='convert weights between implementations',
    configs='list the configs of this package',
    doctor='say what this machine has, what is missing, and what to do about it',
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `ddetr COMMAND ARGUMENTS ...`; by default those of the command line."""
    width = max(map(len, COMMANDS)) + 2
    listed = '\n'.join(f'  {name:{width}}{what}' for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog='ddetr',
        usage='ddetr COMMAND [ARGUMENT ...]',
        description='Deformable DETR for MMDetection.\n\ncommands:\n' + listed,
        epilog='`ddetr COMMAND --help` lists the options of one.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=__version__)
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help=argparse.SUPPRESS)
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    run_command(args.command, args.arguments, f'ddetr {args.command}')


def make_parser(name: str, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command, a module of this package; `prog` is what its help calls it."""
    command = importlib.import_module(f'{__name__}.{name}')
    parser = argparse.ArgumentParser(
        prog=prog,
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return parser


def run_command(name: str, arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run a command.

    Args:
        name: that of a module of this package.
        arguments: by default those of the command line.
        prog: what its messages call it; by default the script that runs.

    Raises:
        SystemExit: it failed; the message was printed, or is the exception's code.
    """
    parser = make_parser(name, prog)
    args = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    importlib.import_module(f'{__name__}.{name}').run(args, parser)
