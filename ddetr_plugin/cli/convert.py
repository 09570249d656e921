"""Convert weights between the official release, mmdet, Hugging Face, detrex and this package.

    %(prog)s SRC DST [--config CFG] [--from auto] [--to ddetr_plugin]
        [--classes NAME ... | coco | keep] [--allow-missing] [--ema] [--verify] [--trust]

SRC is a .pth, .bin or .safetensors file, or a folder of transformers or its index JSON; DST a file,
with the suffix .safetensors for --to transformers. With --config the weights are compared with that
model, name by name, and its classes are taken. The class rows of a decoder move by name: the
official 91 become COCO's 80, unless --classes says otherwise (keep: leave them). Converting back to
official or transformers restores them.
"""

import sys

from ddetr_plugin.cli.options import add_config_overrides


def _dialect(name):
    # `hf` is the word of earlier releases.
    return 'transformers' if name == 'hf' else name


def add_arguments(parser):
    from ddetr_plugin.apis.conversion import TARGETS
    from ddetr_plugin.checkpoints import DIALECTS, OURS

    add = parser.add_argument
    add('source', metavar='SRC', help='checkpoint to read')
    add('destination', metavar='DST', help='file to write')
    add('--config', help='config of the model that will take the weights')
    add(
        '--from',
        dest='dialect',
        default='auto',
        type=_dialect,
        choices=['auto', *DIALECTS, OURS],
        help='what wrote SRC (default: look)',
    )
    add('--to', default=OURS, type=_dialect, choices=TARGETS, help='what is to read DST')
    add(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='class names of the new model, in order; "coco" for its 80; "keep" for the rows as '
        'they are (default: the classes of --config)',
    )
    add('--allow-missing', action='store_true', help='go on if weights are missing or left over')
    add('--ema', action='store_true', help='take the average of the weights that lies beside them')
    add(
        '--verify',
        action='store_true',
        help="compare with the source's own library on random images; needs --config",
    )
    add(
        '--trust',
        action='store_true',
        help='let the pickle in SRC run whatever it asks for; only for files you know',
    )
    add_config_overrides(parser)


def run(args, parser):
    from ddetr_plugin.apis.conversion import convert

    classes = args.classes
    if classes in (['keep'], ['coco']):
        (classes,) = classes
    try:
        lines = convert(
            args.source,
            args.destination,
            args.config,
            args.dialect,
            args.to,
            classes,
            args.allow_missing,
            args.ema,
            args.verify,
            args.trust,
            args.cfg_options,
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print('\n'.join(lines))
