"""Train a model from a config file.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]]
        [--amp [force]] [--auto-scale-lr] [--skip-data-check] [--cfg-options KEY=VALUE ...]

Before anything else it looks through the annotation files for what would spoil the training, and
whether all pictures are there; tools/check_dataset.py also looks into the pictures.

On several processes (GPUs, or CPUs with gloo):

    torchrun --nproc_per_node=2 tools/train.py CONFIG --launcher pytorch
"""

import argparse

# Before anything imports mmdet: makes mmdet importable where mmcv has no compiled extension.
import ddetr_plugin  # noqa: F401
from ddetr_plugin.checkpoints import CheckpointFileError
from ddetr_plugin.compat import (
    MissingMMCVOpError,
    MissingPanopticAPIError,
    require_panopticapi,
)
from ddetr_plugin.data_checks import check_config, print_findings
from ddetr_plugin.engine import launch, precision
from ddetr_plugin.engine.work_dir_lock import lock_work_dir


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    launch.add_common_options(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint; without a value, from the newest in the work dir',
    )
    precision.add_amp_option(
        parser, 'mixed precision: scaled float16 on CUDA, bfloat16 autocast on the CPU'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='multiply every learning rate by (processes * batch size / base batch size); '
        'gradient accumulation is not counted',
    )
    parser.add_argument(
        '--skip-data-check',
        action='store_true',
        help='train without a look at the annotation files',
    )
    return parser, parser.parse_args(arguments)


def make_config(args):
    """The config that the command line asks for."""
    config = launch.load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    precision.set_precision(config, args.amp)
    if args.auto_scale_lr:
        launch.enable_auto_scale_lr(config)
    if args.resume is not None:
        config.resume = True
        config.load_from = None
        if args.resume != 'auto':
            launch.require_file(args.resume, 'checkpoint')
            config.load_from = args.resume
    return config


def check_data(parser, config):
    """Prints what does not fit in the data; ends the program where it would spoil the training."""
    if print_findings(check_config(config)):
        parser.exit(
            1,
            'error: training on this data would fail or go wrong, see above. Correct it; '
            'tools/check_dataset.py --config lists everything. --skip-data-check trains anyway\n',
        )


def main(arguments=None):
    parser, args = parse_args(arguments)
    try:
        config = make_config(args)
        # `build_runner` asks, too, but only after the lock has made the work folder.
        require_panopticapi(config.to_dict())
    except (OSError, ValueError, MissingPanopticAPIError) as error:
        parser.error(str(error))
    if launch.is_first(config):
        if not args.skip_data_check:
            check_data(parser, config)
        try:
            # Before anything is written; AtomicCheckpointHook, which locks the folder for every
            # Runner, comes after the log file.
            lock_work_dir(config.work_dir)
        except ValueError as error:
            parser.error(str(error))
        except OSError as error:
            parser.error(
                f'nothing can be written to {config.work_dir}: {error}. Name another folder with '
                '--work-dir'
            )
    try:
        launch.build_runner(config, args.local_rank).train()
    except (launch.LaunchError, MissingMMCVOpError, CheckpointFileError) as error:
        parser.error(str(error))
    except launch.STOPPED as error:
        parser.exit(1, f'error: {error}\n')
    launch.leave_processes()


if __name__ == '__main__':
    main()
