"""Evaluate a checkpoint on the test data of a config.

    %(prog)s CONFIG CHECKPOINT [--work-dir DIR] [--out RESULTS.pkl] [--amp [force]] [--show]
        [--show-dir DIR] [--cfg-options KEY=VALUE ...]

On several processes:

    torchrun --nproc_per_node=2 tools/test.py CONFIG CHECKPOINT --launcher pytorch
"""

from ddetr_plugin.cli.options import add_amp_option, add_run_options


def add_arguments(parser):
    add_run_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file, folder of transformers or URL')
    add_amp_option(parser, 'predict under autocast: float16 on CUDA, bfloat16 on the CPU')
    parser.add_argument('--out', metavar='RESULTS.pkl', help='write the predictions as a pickle')
    parser.add_argument('--show', action='store_true', help='show the drawn predictions')
    parser.add_argument(
        '--show-dir', help='write the drawn predictions to WORK_DIR/TIMESTAMP/SHOW_DIR'
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per shown image')


def make_config(args):
    """The config that the command line asks for."""
    from ddetr_plugin.apis.testing import prepare_test

    return prepare_test(
        args.config,
        args.checkpoint,
        args.work_dir,
        args.amp,
        args.out,
        args.show,
        args.show_dir,
        args.wait_time,
        args.cfg_options,
        args.launcher,
    )


def run(args, parser):
    from ddetr_plugin.apis.launch import EXPECTED_STOPS
    from ddetr_plugin.apis.testing import run_test
    from ddetr_plugin.checkpoints import CheckpointFileError
    from ddetr_plugin.compat import MissingMMCVOpError, MissingPanopticAPIError
    from ddetr_plugin.engine.processes import LaunchError

    try:
        config = make_config(args)
    except (OSError, ValueError, MissingPanopticAPIError) as error:
        parser.error(str(error))
    try:
        run_test(config, args.out, args.local_rank)
    except (LaunchError, MissingMMCVOpError, CheckpointFileError) as error:
        parser.error(str(error))
    except EXPECTED_STOPS as error:
        parser.exit(1, f'error: {error}\n')
