"""Convert weights between the official release, mmdet, Hugging Face, detrex and this package.

    python tools/convert_checkpoint.py SRC DST [--config CFG] [--from auto] [--to ddetr_plugin]
        [--classes NAME ... | coco | keep] [--allow-missing] [--ema] [--verify] [--trust]

SRC is a .pth, .bin or .safetensors file, or a folder of transformers or its index JSON; DST a file,
with the suffix .safetensors for --to hf. With --config the weights are compared with that model,
name by name, and its classes are taken. The class rows of a decoder move by name: the official 91
become COCO's 80, unless --classes says otherwise (keep: leave them). Converting back to official or
hf restores them.
"""

import argparse
import sys

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin import checkpoints as bridge
from ddetr_plugin.engine.launch import add_config_overrides, load_config

# isort: split
from ddetr_plugin.checkpoints.class_rows.plan import named_classes
from ddetr_plugin.checkpoints.class_rows.rows import OFFICIAL_ROWS, coco_classes
from ddetr_plugin.checkpoints.files.stated_settings import file_settings, our_settings
from ddetr_plugin.checkpoints.files.writing import check_destination
from ddetr_plugin.checkpoints.names.rename import is_neck_bias
from ddetr_plugin.checkpoints.names.table import has_transformers_resnet, with_transformers_resnet
from ddetr_plugin.checkpoints.parity.verify import TOLERANCE, build_ours, verify
from ddetr_plugin.config_types import type_name
from ddetr_plugin.engine.hooks.foreign_checkpoints import dataset_classes

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


def sized(model, classes):
    """The model config, with the number of classes that --classes names."""
    if classes not in (None, 'keep'):
        model = bridge.with_rows(model, len(classes))
    return model


def model_of(args, classes):
    """(model config, our model on no device, class names of its dataset) of --config.

    Raises:
        ValueError: the config is of another model.
    """
    config = load_config(args.config, args.cfg_options)
    described = config.get('model') or {}
    if not {'encoder', 'query_head', 'decoder', 'bbox_head'} <= described.keys():
        raise ValueError(
            f'{args.config} describes a {type_name(described, "nameless model")}, expected this '
            "package's Deformable DETR: the model that takes the converted weights, whatever "
            '--to says'
        )
    model = sized(described, classes)
    return model, build_ours(model, 'meta'), dataset_classes(config)


def convert(args):
    """Does what the command line asks for; returns the lines of the report.

    Raises:
        ImportError: a module that the config names is missing.
        OSError: a file does not exist, or cannot be written.
        ValueError: whatever else is wrong.
    """
    check_destination(args.destination, args.to, args.source)
    if args.verify and not args.config:
        raise ValueError(
            '--verify needs --config: weights alone do not say how many heads the attention has'
        )
    source = bridge.read_checkpoint(args.source, trust=args.trust, ema=args.ema)
    classes = wanted_classes(args.classes)
    model = built = target_classes = None
    if args.config:
        model, built, target_classes = model_of(args, classes)
    converted = bridge.to_ours(
        source,
        args.dialect,
        built and built.state_dict(),
        classes,
        target_classes,
        args.allow_missing,
        built and our_settings(built).get('with_box_refine'),
    )
    lines = bridge.describe(converted, source)
    if built is None:
        lines += bridge.settings_to_match(source, converted.dialect)
    else:
        lines += bridge.dilation_mismatch(source, converted.dialect, built.backbone)
        others = bridge.settings_mismatch(source, converted.dialect, built)
        if others and args.verify:
            said = others[0].removeprefix('warning: ')
            raise ValueError(
                f'nothing to verify with this config: {said}. Change the config; nothing was '
                'written'
            )
        lines += others
    if args.verify:
        lines += verification(model, source, converted)
    return lines + write(args, source, converted)


def write(args, source, converted):
    """Writes the weights as --to asks; returns lines of the report."""
    earlier = source.meta.get('conversion') or {}
    dropped = converted.dropped or dict(earlier.get('dropped') or {})
    # Of the official or transformers' file that the weights were first, which may have had 80.
    rows = earlier.get('rows')
    if converted.dialect in ('official', 'hf'):
        rows = converted.source_rows
    lines = []
    if args.to == bridge.OURS:
        state = converted.state
    else:
        coco = tuple(converted.classes or ()) == tuple(coco_classes())
        expand = coco and rows != len(coco_classes()) and wanted_classes(args.classes) != 'keep'
        # With --allow-missing: what the report says is left over has no place there either.
        state = {
            name: tensor
            for name, tensor in converted.state.items()
            if f'left over: {name}' not in converted.problems
        }
        state = bridge.export(state, args.to, converted.layout, expand, dropped)
        if expand and args.to in ('official', 'hf'):
            lines.append(
                f'note: {len(coco_classes())} class rows become {OFFICIAL_ROWS}, one per category '
                'id of COCO; --classes keep leaves them'
            )
        if args.to != 'mmdet' and not any(map(is_neck_bias, converted.state)):
            lines.append(
                f'note: {args.to} has biases in the neck, the weights have none: zeros (D1)'
            )
    # transformers has two kinds of names for a ResNet: timm's, and those of its own.
    own_resnet = has_transformers_resnet(source.state) or bool(earlier.get('own_resnet'))
    if args.to == 'hf' and own_resnet:
        state = with_transformers_resnet(state)
    conversion = {
        'from': converted.dialect,
        'rows': rows,
        'dropped': dropped,
        'own_resnet': own_resnet,
        'refines': converted.layout.refines,
        # For whoever loads the new file: weights do not show them.
        'settings': file_settings(source.meta, converted.dialect),
    }
    meta = {'conversion': conversion}
    if source.dilated is not None:
        meta['dilation'] = source.dilated
    classes = converted.classes or named_classes(source.meta)
    if classes is not None:
        meta['dataset_meta'] = {'classes': tuple(classes)}
    bridge.write_checkpoint(args.destination, state, args.to, meta)
    heads = ('bbox_head.cls_branches.0.bias', 'class_embed.0.bias')
    rows = next((len(state[name]) for name in heads if name in state), None)
    lines.append(
        f'written: {args.destination}, {len(state)} tensors for {args.to}, {rows} class rows, '
        f'checksum {bridge.checksum(state)}'
    )
    if args.to == 'mmdet' and any(map(is_neck_bias, state)):
        lines.append('note: build the neck with bias=True; mmdet leaves it out by default (D1)')
    return lines


def verification(model, source, converted):
    """Lines on --verify.

    Raises:
        ValueError: the source's library is not installed, has no such model, or computes something
            else.
    """
    if converted.problems:
        return [
            f'verified: no; {len(converted.problems)} tensors do not fit (see above), so the two '
            'models cannot compute the same'
        ]
    try:
        found = verify(model, source, converted)
    except ImportError as error:
        raise ValueError(
            f'--verify needs the library that wrote the weights ({converted.dialect}): {error}; '
            'install it, or leave --verify out'
        ) from error
    if found is None:
        return [
            f'verified: no; there is no library of {converted.dialect} to compare with. Names and '
            'numbers are compared in tests'
        ]
    differences = (
        f'largest differences on random images: logits {found.logits:.1e}, boxes {found.boxes:.1e}'
    )
    if not found.passed:
        reason = (
            'Either --config has another setting than the weights had, or the file holds numbers '
            'that are not finite'
        )
        if found.by_rounding:
            reason = (
                'Rounding alone changes as much in this model: its weights are too large to '
                'compare it in float32, as those of a training that diverged'
            )
        raise ValueError(
            f'verified: no; {differences}, expected at most {TOLERANCE:.0e}. The largest is at '
            f'{found.where}. Nothing was written. {reason}'
        )
    if found.by_config:
        return [f'verified: {differences}']
    return [
        f'verified as far as weights tell: {differences}',
        'note: the file brings no config, or none that can be read, so the model that the weights '
        'were compared with has the heads, activations and other settings of --config',
    ]


def main(arguments=None):
    parser, args = parse_args(arguments)
    try:
        lines = convert(args)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
