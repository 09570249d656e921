"""Train a model from a config.

    %(prog)s CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp [force]] [--auto-scale-lr]
        [--skip-data-check] [--cfg-options KEY=VALUE ...]

Before anything else it looks through the annotation files for what would spoil the training, and
whether all images are there; tools/check_dataset.py also looks into the images. Annotation files
that can be repaired, such as those that count from 0, are: in the work folder, and the training
reads that. The originals stay as they are.

On several processes (GPUs, or CPUs with gloo):

    torchrun --nproc_per_node=2 tools/train.py CONFIG --launcher pytorch
"""

from ddetr_plugin.cli.options import add_amp_option, add_run_options


def add_arguments(parser):
    add_run_options(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const=True,
        default=False,
        metavar='CHECKPOINT',
        help='continue from this checkpoint; without a value, from the newest in the work dir',
    )
    add_amp_option(parser, 'mixed precision: scaled float16 on CUDA, bfloat16 autocast on the CPU')
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


def make_config(args):
    """The config that the command line asks for."""
    from ddetr_plugin.apis.training import prepare_training

    return prepare_training(
        args.config,
        args.work_dir,
        args.resume,
        args.amp,
        args.auto_scale_lr,
        args.cfg_options,
        args.launcher,
    )


def run(args, parser):
    from ddetr_plugin.apis.launch import EXPECTED_STOPS
    from ddetr_plugin.apis.training import WorkDirError, run_training
    from ddetr_plugin.checkpoints import CheckpointFileError
    from ddetr_plugin.compat import MissingMMCVOpError, MissingPanopticAPIError
    from ddetr_plugin.data_checks import DataError
    from ddetr_plugin.engine import WorkDirInUseError
    from ddetr_plugin.engine.processes import LaunchError

    try:
        config = make_config(args)
    except (OSError, ValueError, MissingPanopticAPIError) as error:
        parser.error(str(error))
    try:
        run_training(config, not args.skip_data_check, args.local_rank)
    except (
        LaunchError,
        MissingMMCVOpError,
        CheckpointFileError,
        WorkDirError,
        WorkDirInUseError,
    ) as error:
        parser.error(str(error))
    except (DataError, *EXPECTED_STOPS) as error:
        parser.exit(1, f'error: {error}\n')
