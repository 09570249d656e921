"""Evaluate a checkpoint on a config's test data.

    python tools/test.py CONFIG CHECKPOINT [--work-dir DIR] [--out RESULTS.pkl]
        [--amp [force]] [--show] [--show-dir DIR] [--cfg-options KEY=VALUE ...]

On several processes:

    torchrun --nproc_per_node=2 tools/test.py CONFIG CHECKPOINT --launcher pytorch
"""

import argparse

# Before anything imports mmdet: makes mmdet importable where mmcv has no compiled extension.
import ddetr_plugin  # noqa: F401
from ddetr_plugin.checkpoints import CheckpointFileError
from ddetr_plugin.compat import MissingMMCVOpError, MissingPanopticAPIError
from ddetr_plugin.data_checks import box_datasets, check_encoding
from ddetr_plugin.engine import launch, precision


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    launch.add_common_options(parser)
    parser.add_argument('checkpoint', help='checkpoint file, folder of transformers or URL')
    precision.add_amp_option(parser, 'predict under autocast: float16 on CUDA, bfloat16 on the CPU')
    parser.add_argument('--out', metavar='RESULTS.pkl', help='write the predictions as a pickle')
    parser.add_argument('--show', action='store_true', help='show the drawn predictions')
    parser.add_argument(
        '--show-dir', help='write the drawn predictions to WORK_DIR/TIMESTAMP/SHOW_DIR'
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per shown picture')
    return parser, parser.parse_args(arguments)


def enable_drawing(config, show, show_dir, wait_time):
    """Let mmdet's visualisation hook draw predictions beside the ground truth.

    Raises:
        ValueError: the config has no visualisation hook.
    """
    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            "--show and --show-dir need mmdet's hook in the config: "
            'default_hooks = dict(visualization=dict(type="DetVisualizationHook"))'
        )
    hook.draw = True
    if show:
        hook.show = True
        hook.wait_time = wait_time
    if show_dir is not None:
        hook.test_out_dir = show_dir


def require_plain_annotations(config):
    """Raise ValueError if pycocotools cannot read an annotation file of the test data."""
    for _, ann_file, _ in box_datasets(dict(test_dataloader=config.get('test_dataloader'))):
        for finding in check_encoding(ann_file) if ann_file.is_file() else ():
            raise ValueError(f'{finding.file}: {finding.detail}; {finding.remedy}')


def make_config(args):
    """The config that the command line asks for."""
    config = launch.load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    launch.require_checkpoint(args.checkpoint)
    config.load_from = args.checkpoint
    config.resume = False
    require_plain_annotations(config)
    precision.set_test_precision(config, args.amp)
    if args.show or args.show_dir is not None:
        enable_drawing(config, args.show, args.show_dir, args.wait_time)
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out must end with .pkl or .pickle, got {args.out}')
    return config


def main(arguments=None):
    parser, args = parse_args(arguments)
    try:
        config = make_config(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        runner = launch.build_runner(config, args.local_rank)
        if args.out is not None:
            from mmdet.evaluation import DumpDetResults

            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
        runner.test()
    except (
        launch.LaunchError,
        MissingMMCVOpError,
        MissingPanopticAPIError,
        CheckpointFileError,
    ) as error:
        parser.error(str(error))
    except launch.STOPPED as error:
        parser.exit(1, f'error: {error}\n')
    launch.leave_processes()


if __name__ == '__main__':
    main()
