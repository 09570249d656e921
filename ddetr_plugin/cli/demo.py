"""Train on the demo's scenes or on your own images, evaluate, and draw.

    %(prog)s                 # digits on clutter; the data is made if need be
    %(prog)s --data FOLDER   # your own data set: COCO, YOLO, Pascal VOC or LabelMe

Leaves in the work folder (work_dirs/demo/ or work_dirs/<folder name>/): checkpoints, metrics.json,
curves.png, detections.png and detections/. Interrupted, the same command resumes; when the training
is complete it only evaluates and draws again. training.json says what the training is on and how it
is done: with other data or settings, the tool stops instead of resuming or evaluating it.
"""

import sys

from ddetr_plugin.cli.options import (
    add_amp_option,
    add_config_overrides,
    add_data_options,
    whole_number,
)


def add_arguments(parser):
    parser.add_argument('--data', help='your own data set; default: the demo scenes')
    parser.add_argument('--config', help='default: the config for the scenes or for own images')
    parser.add_argument('--work-dir', help='default: work_dirs/<name of the data>')
    parser.add_argument(
        '--iters', type=whole_number(1), help='length of the training, schedule included'
    )
    add_amp_option(
        parser,
        'mixed precision: scaled float16 on CUDA, bfloat16 autocast on the CPU; has a work folder '
        'of its own, ending with -amp',
    )
    add_data_options(parser)
    add_config_overrides(parser)


def run(args, parser):
    from ddetr_plugin.apis.launch import EXPECTED_STOPS
    from ddetr_plugin.apis.own_training import prepare_own_training, run_own_training

    try:
        training = prepare_own_training(
            args.data,
            args.config,
            args.work_dir,
            args.iters,
            args.amp,
            args.boxes,
            args.keep_super_classes,
            args.cfg_options,
        )
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    try:
        run_own_training(training)
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. The same command resumes from the last checkpoint.')
    except EXPECTED_STOPS as error:
        sys.exit(f'error: {error}')
