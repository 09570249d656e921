"""Convert weights between the official release, mmdet 3, Hugging Face, detrex and this package.

    python tools/convert_checkpoint.py SRC DST [--config CFG] [--from auto] [--to ddetr_plugin]
        [--classes NAME ... | coco | keep] [--allow-missing] [--ema] [--verify] [--trust]

SRC is a .pth, .bin or .safetensors file or a folder of transformers; DST a file, with the suffix
.safetensors for --to hf. With --config the weights are compared with that model, name by name, and
its classes are taken. The class rows of a decoder move by name: the official 91 become COCO's 80,
unless --classes says otherwise (keep: leave them). Converting back to official or hf restores them.
"""

import argparse
import sys

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin import checkpoints as bridge
from ddetr_plugin.engine.launch import add_config_overrides, load_config

# isort: split
from ddetr_plugin.checkpoints.classes import coco_classes
from ddetr_plugin.checkpoints.names import has_transformers_resnet, with_transformers_resnet
from ddetr_plugin.checkpoints.verify import build_ours, verify
from ddetr_plugin.engine.foreign_checkpoints import dataset_classes

TARGETS = ('ddetr_plugin', 'official', 'mmdet', 'hf')


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='SRC', help='checkpoint to read')
    parser.add_argument('destination', metavar='DST', help='file to write')
    parser.add_argument('--config', help='config of the model that will take the weights')
    parser.add_argument(
        '--from',
        dest='dialect',
        default='auto',
        choices=['auto', *bridge.DIALECTS, bridge.OURS],
        help='what wrote SRC (default: look)',
    )
    parser.add_argument('--to', default=bridge.OURS, choices=TARGETS, help='what is to read DST')
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='class names of the new model, in order; "coco" for its 80; "keep" for the rows as '
        'they are (default: the classes of --config)',
    )
    parser.add_argument(
        '--allow-missing', action='store_true', help='go on if weights are missing or left over'
    )
    parser.add_argument(
        '--ema', action='store_true', help='take the average of the weights that lies beside them'
    )
    parser.add_argument(
        '--verify',
        action='store_true',
        help="compare with the source's own library on random pictures; needs --config",
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let the pickle in SRC run whatever it asks for; only for files you know',
    )
    add_config_overrides(parser)
    return parser, parser.parse_args(arguments)


def wanted_classes(names):
    """--classes as `to_ours` takes it."""
    if names in (['keep'], None):
        return names and 'keep'
    return coco_classes() if names == ['coco'] else tuple(names)


def sized(config, classes):
    """The model config, with the number of classes that --classes names."""
    model = config.model
    if classes not in (None, 'keep'):
        model = bridge.with_rows(model, len(classes))
    return model


def convert(args):
    """Does what the command line asks for; returns the lines of the report.

    Raises:
        FileNotFoundError: a file does not exist.
        ImportError: --verify, and the library is not installed.
        ValueError: whatever else is wrong.
    """
    if args.verify and not args.config:
        raise ValueError(
            '--verify needs --config: weights alone do not say how many heads the attention has'
        )
    source = bridge.read_checkpoint(args.source, trust=args.trust, ema=args.ema)
    classes = wanted_classes(args.classes)
    model = target = target_classes = None
    if args.config:
        config = load_config(args.config, args.cfg_options)
        target_classes = dataset_classes(config)
        model = sized(config, classes)
        target = build_ours(model, 'meta').state_dict()
    converted = bridge.to_ours(
        source, args.dialect, target, classes, target_classes, args.allow_missing
    )
    lines = bridge.describe(converted, source)
    lines += dilation_mismatch(source, model)
    if args.verify:
        lines.append(verification(model, source, converted))

    earlier = source.meta.get('conversion') or {}
    dropped = converted.dropped or dict(earlier.get('dropped') or {})
    if args.to == bridge.OURS:
        state = converted.state
    else:
        coco = tuple(converted.classes or ()) == tuple(coco_classes())
        state = bridge.export(converted.state, args.to, converted.layout, coco, dropped)
    # transformers has two kinds of names for a ResNet: timm's, and those of its own.
    own_resnet = has_transformers_resnet(source.state) or bool(earlier.get('own_resnet'))
    if args.to == 'hf' and own_resnet:
        state = with_transformers_resnet(state)
    conversion = {'from': converted.dialect, 'dropped': dropped, 'own_resnet': own_resnet}
    meta = {'conversion': conversion}
    if converted.classes is not None:
        meta['dataset_meta'] = {'classes': converted.classes}
    bridge.write_checkpoint(args.destination, state, args.to, meta)
    rows = next((len(t) for n, t in state.items() if 'cls_branches.0.b' in n), None)
    rows = rows or next((len(t) for n, t in state.items() if 'class_embed.0.b' in n), None)
    lines.append(
        f'written: {args.destination}, {len(state)} tensors for {args.to}, {rows} class rows, '
        f'checksum {bridge.checksum(state)}'
    )
    if args.to == 'mmdet' and any(n.startswith('neck') and 'conv.bias' in n for n in state):
        lines.append('note: build the neck with bias=True; mmdet leaves it out by default (D1)')
    return lines


def dilation_mismatch(source, model):
    """A line if the file says DC5 and the config does not, or the other way round."""
    said = source.dilated if source.dilated is not None else source.meta.get('dilation')
    if model is None or said is None:
        return []
    built = any(d != 1 for d in model.backbone.get('dilations', ()))
    if built == said:
        return []
    words = {True: 'a dilated', False: 'an undilated'}
    return [f'warning: the file is of {words[said]} backbone, the config has {words[built]} one']


def verification(model, source, converted):
    """One line on --verify."""
    difference = verify(model, source, converted)
    if difference is None:
        return (
            f'verified: no; there is no library of {converted.dialect} to compare with. Names and '
            'numbers are compared in tests'
        )
    logits, boxes = difference
    return (
        f'verified: largest differences on random pictures: logits {logits:.1e}, boxes {boxes:.1e}'
    )


def main(arguments=None):
    parser, args = parse_args(arguments)
    try:
        lines = convert(args)
    except ImportError as error:
        sys.exit(f'error: --verify needs the library that wrote the weights: {error}')
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
