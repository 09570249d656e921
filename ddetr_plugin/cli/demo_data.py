"""Compose scenes of handwritten digits on clutter, as a COCO-format data set.

    %(prog)s [--out data/demo] [--train 4000] [--val 300] [--seed 0]

The digits are scikit-learn's real scans (10 classes, 8 x 8 pixels); those of the validation scenes
never occur in training scenes. The same arguments give the same scenes. The folder appears when it
is complete; an existing one that was made with the same arguments is kept.
"""

import sys


def add_arguments(parser):
    parser.add_argument('--out', default='data/demo', help='folder to make')
    parser.add_argument('--train', type=int, default=4000, help='number of training scenes')
    parser.add_argument('--val', type=int, default=300, help='number of validation scenes')
    parser.add_argument('--seed', type=int, default=0)


def run(args, parser):
    from ddetr_plugin.apis.demo_data import make_demo_data

    try:
        made = make_demo_data(args.out, args.train, args.val, args.seed)
    except FileExistsError as error:
        sys.exit(f'error: {error}, or name another folder with --out')
    except OSError as error:
        sys.exit(f'error: {args.out} cannot be made: {error}')
    print(f'{args.out}: {"made" if made else "is there already"}')
