"""Options that several commands have; importing this loads neither torch nor mmengine."""

import argparse

__all__ = [
    'add_amp_option',
    'add_config_overrides',
    'add_data_options',
    'add_run_options',
    'unit_number',
    'whole_number',
]

FORCE = 'force'


class _ConfigOptions(argparse.Action):
    """mmengine's key=value parser, with a readable message for what is not key=value."""

    def __call__(self, parser, namespace, values, option_string=None):
        from mmengine.config import DictAction

        for value in values:
            key, separator, _ = value.partition('=')
            if not separator or not key:
                parser.error(f'{option_string} takes key=value pairs, got {value!r}')
        action = DictAction(self.option_strings, self.dest, nargs=self.nargs)
        action(parser, namespace, values, option_string)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what training and testing have in common."""
    add = parser.add_argument
    add('config', help='config file, or the name of one of this package')
    add('--work-dir', help='folder for logs, checkpoints and results')
    add_config_overrides(parser)
    add(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run (torchrun: pytorch)',
    )
    # Older torch launchers pass the local rank as an option, torchrun in the environment.
    add('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_config_overrides(parser: argparse.ArgumentParser) -> None:
    """Add --cfg-options: `cfg_options` is a dict of dotted keys and values, or None."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_ConfigOptions,
        metavar='KEY=VALUE',
        help='override config values, e.g. train_cfg.max_epochs=2 key="[a,b]" key=a,b',
    )


def add_amp_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --amp: `amp` is None, 'auto' or 'force'. `what` says in the help what it does."""
    parser.add_argument(
        '--amp',
        nargs='?',
        const='auto',
        type=_amp_value,
        metavar=FORCE,
        help=f'{what}; refused where this CPU is slower with it, unless --amp force',
    )


def _amp_value(value):
    # argparse hands over the value that stands for none, too.
    if value not in ('auto', FORCE):
        raise argparse.ArgumentTypeError(
            f"takes no value or 'force', got {value!r}; if that is another argument, put it "
            'before --amp'
        )
    return value


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add how the annotations of a folder are read."""
    from ddetr_plugin.data_checks import BOX_FORMS

    parser.add_argument(
        '--boxes',
        choices=('pixels', *BOX_FORMS),
        default='pixels',
        help='what the four numbers of a box are: x, y, width, height in pixels, the same as '
        'shares of the image (normalised), or its corners or centre and size as such shares',
    )
    parser.add_argument(
        '--keep-super-classes',
        action='store_true',
        help='keep classes that no box uses and that others name as their supercategory',
    )


def unit_number(text: str) -> float:
    """A number between 0 and 1, for argparse."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'must be between 0 and 1, got {text}')
    return value


def whole_number(least: int):
    """A function for argparse that takes a whole number from `least` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f'must be {least} or more, got {text}')
        return value

    return number
