"""Train a model from a config file.

    python tools/train.py CONFIG [--work-dir DIR] [--resume [CHECKPOINT]]
        [--amp [force]] [--auto-scale-lr] [--skip-data-check] [--cfg-options KEY=VALUE ...]

Before anything else it looks through the annotation files for what would spoil the training, and
whether all pictures are there; tools/check_dataset.py also looks into the pictures. Annotation
files that can be repaired, such as those that count from 0, are: in the work folder, and the
training reads that. The originals stay as they are.

On several processes (GPUs, or CPUs with gloo):

    torchrun --nproc_per_node=2 tools/train.py CONFIG --launcher pytorch
"""

import argparse
from pathlib import Path

# Before anything imports mmdet: makes mmdet importable where mmcv has no compiled extension.
import ddetr_plugin  # noqa: F401
from ddetr_plugin.checkpoints import CheckpointFileError
from ddetr_plugin.compat import (
    MissingMMCVOpError,
    MissingPanopticAPIError,
    require_panopticapi,
)
from ddetr_plugin.data_checks import check_config, has_errors, print_findings
from ddetr_plugin.engine import launch, precision
from ddetr_plugin.engine.work_dir.lock import lock_work_dir
from ddetr_plugin.intake import repair_config


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
    """Looks through the data, and repairs what stands in the way of the training and can be.

    Every process of a run does, so that all train on the same files; the first one speaks, writes,
    and ends the program where the training would be spoilt.
    """
    findings = check_config(config)
    if has_errors(findings):
        repairs = repair_config(config, Path(config.work_dir) / 'annotations')
        if not launch.is_first(config):
            return
        if repairs.contents:
            lock(parser, config.work_dir)
            repairs.write()
            print(f'Annotation files were repaired in {repairs.folder}:')
            print('\n'.join(f'    {line}' for line in repairs.changes.lines()))
            written = Path(config.work_dir) / Path(config.filename).name
            print(f'{written} names them: test and predict with that config, not with yours')
            findings = check_config(config)
        findings = repairs.findings + findings
    if launch.is_first(config) and print_findings(findings):
        parser.exit(
            1,
            'error: training on this data would fail or go wrong, see above. Correct it; '
            'tools/check_dataset.py --config lists everything. --skip-data-check trains anyway\n',
        )


def lock(parser, work_dir):
    """Takes the work folder for this training, or ends the program."""
    try:
        lock_work_dir(work_dir)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(
            f'nothing can be written to {work_dir}: {error}. Name another folder with --work-dir'
        )


def main(arguments=None):
    parser, args = parse_args(arguments)
    try:
        config = make_config(args)
        # `build_runner` asks, too, but only after the lock has made the work folder.
        require_panopticapi(config.to_dict())
    except (OSError, ValueError, MissingPanopticAPIError) as error:
        parser.error(str(error))
    if not args.skip_data_check:
        check_data(parser, config)
    if launch.is_first(config):
        # Before anything is written; AtomicCheckpointHook, which locks the folder for every
        # Runner, comes after the log file.
        lock(parser, config.work_dir)
    try:
        launch.build_runner(config, args.local_rank).train()
    except (launch.LaunchError, MissingMMCVOpError, CheckpointFileError) as error:
        parser.error(str(error))
    except launch.STOPPED as error:
        parser.exit(1, f'error: {error}\n')
    launch.leave_processes()


if __name__ == '__main__':
    main()
