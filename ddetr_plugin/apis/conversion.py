"""Convert weights between the official release, mmdet, Hugging Face, detrex and this package."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

from ddetr_plugin import checkpoints as bridge
from ddetr_plugin.apis.config_reading import load_config
from ddetr_plugin.checkpoints.class_rows.plan import named_classes
from ddetr_plugin.checkpoints.class_rows.rows import OFFICIAL_ROWS, coco_classes
from ddetr_plugin.checkpoints.files.stated_settings import file_settings, our_settings
from ddetr_plugin.checkpoints.files.writing import TARGETS, check_destination
from ddetr_plugin.checkpoints.names.ours import is_neck_bias
from ddetr_plugin.checkpoints.names.table import has_transformers_resnet, with_transformers_resnet
from ddetr_plugin.checkpoints.parity import verify as parity
from ddetr_plugin.config_types import type_name
from ddetr_plugin.datasets.class_names import dataset_classes

__all__ = ['TARGETS', 'convert']


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    config: str | os.PathLike | Config | None = None,
    dialect: str = 'auto',
    to: str = bridge.OURS,
    classes: Sequence[str] | str | None = None,
    allow_missing: bool = False,
    ema: bool = False,
    verify: bool = False,
    trust: bool = False,
    overrides: Mapping | None = None,
) -> list[str]:
    """Convert weights between the official release, mmdet, Hugging Face, detrex and this package.

    Args:
        source: a .pth, .bin or .safetensors file, or a folder of transformers or its index JSON.
        destination: file to write, with the suffix .safetensors for 'transformers'.
        config: path, name or Config of the model that will take the weights; they are compared with
            it, name by name, and its classes are taken.
        dialect: what wrote `source`: 'auto', 'ddetr_plugin' or one of `DIALECTS`.
        to: what is to read `destination`, one of `TARGETS`.
        classes: names of the new model's classes, in order; 'coco' for its 80; 'keep' for the rows
            as they are; None for the classes of `config`. Rows move by name.
        allow_missing: go on if weights are missing or left over.
        ema: take the average of the weights that lies beside them.
        verify: compare with the source's own library on random images; needs `config`.
        trust: let the pickle in `source` run whatever it asks for; only for files you know.
        overrides: dotted keys and values of the config.

    Returns:
        The lines of a report.

    Raises:
        ImportError: a module that the config names is missing.
        OSError: a file does not exist, or cannot be written.
        ValueError: whatever else is wrong.
    """
    check_destination(destination, to, source)
    if verify and config is None:
        raise ValueError(
            '--verify needs --config: weights alone do not say how many heads the attention has'
        )
    read = bridge.read_checkpoint(source, trust=trust, ema=ema)
    if classes == 'coco':
        classes = coco_classes()
    model = built = target_classes = None
    if config is not None:
        model, built, target_classes = _model_of(config, overrides, classes)
    converted = bridge.to_ours(
        read,
        dialect,
        None if built is None else built.state_dict(),
        classes,
        target_classes,
        allow_missing,
        None if built is None else our_settings(built).get('with_box_refine'),
    )
    lines = bridge.describe(converted, read)
    if built is None:
        lines += bridge.settings_to_match(read, converted.dialect)
    else:
        lines += bridge.dilation_mismatch(read, converted.dialect, built.get_submodule('backbone'))
        others = bridge.settings_mismatch(read, converted.dialect, built)
        if others and verify:
            said = others[0].removeprefix('warning: ')
            raise ValueError(
                f'nothing to verify with this config: {said}. Change the config; nothing was '
                'written'
            )
        lines += others
    if verify:
        lines += _verification(model, read, converted)
    return lines + _write(destination, to, read, converted, keep=classes == 'keep')


def _model_of(
    config: str | os.PathLike | Config,
    overrides: Mapping | None,
    classes: Sequence[str] | str | None,
) -> tuple[Config, nn.Module, tuple[str, ...] | None]:
    """(model config, our model on no device, class names of its dataset)."""
    loaded = load_config(config, overrides)
    described = loaded.get('model') or {}
    if not {'encoder', 'query_head', 'decoder', 'bbox_head'} <= described.keys():
        raise ValueError(
            f'{config} describes a {type_name(described, "nameless model")}, expected this '
            "package's Deformable DETR: the model that takes the converted weights, whatever "
            '--to says'
        )
    if classes not in (None, 'keep'):
        described = bridge.with_rows(described, len(classes))
    return described, parity.build_ours(described, 'meta'), dataset_classes(loaded)


def _write(
    destination: str | os.PathLike,
    to: str,
    source: bridge.Source,
    converted: bridge.Conversion,
    keep: bool,
) -> list[str]:
    """Writes the weights for `to`, with the rows that they have if `keep`; lines of the report."""
    earlier = source.meta.get('conversion') or {}
    dropped = converted.dropped or dict(earlier.get('dropped') or {})
    # Of the official or transformers' file that the weights were first, which may have had 80.
    rows = earlier.get('rows')
    if converted.dialect in ('official', 'transformers'):
        rows = converted.source_rows
    lines = []
    if to == bridge.OURS:
        state = converted.state
    else:
        coco = tuple(converted.classes or ()) == tuple(coco_classes())
        expand = coco and rows != len(coco_classes()) and not keep
        # With --allow-missing: what the report says is left over has no place there either.
        state = {
            name: tensor
            for name, tensor in converted.state.items()
            if name not in converted.problems.extra
        }
        state = bridge.export(state, to, converted.architecture, expand, dropped)
        if expand and to in ('official', 'transformers'):
            lines.append(
                f'note: {len(coco_classes())} class rows become {OFFICIAL_ROWS}, one per category '
                'id of COCO; --classes keep leaves them'
            )
        if to != 'mmdet' and not any(map(is_neck_bias, converted.state)):
            lines.append(f'note: {to} has biases in the neck, the weights have none: zeros (D1)')
    # transformers has two kinds of names for a ResNet: timm's, and those of its own.
    own_resnet = has_transformers_resnet(source.state) or bool(earlier.get('own_resnet'))
    if to == 'transformers' and own_resnet:
        state = with_transformers_resnet(state)
    conversion = {
        'from': converted.dialect,
        'rows': rows,
        'dropped': dropped,
        'own_resnet': own_resnet,
        'refines': converted.architecture.refines,
        # For whoever loads the new file: weights do not show them.
        'settings': file_settings(source.meta, converted.dialect),
    }
    meta: dict[str, Any] = {'conversion': conversion}
    if source.dilated is not None:
        meta['dilation'] = source.dilated
    classes = converted.classes or named_classes(source.meta)
    if classes is not None:
        meta['dataset_meta'] = {'classes': tuple(classes)}
    bridge.write_checkpoint(destination, state, to, meta)
    heads = ('bbox_head.cls_branches.0.bias', 'class_embed.0.bias')
    rows = next((len(state[name]) for name in heads if name in state), None)
    lines.append(
        f'written: {destination}, {len(state)} tensors for {to}, {rows} class rows, '
        f'checksum {bridge.checksum(state)}'
    )
    if to == 'mmdet' and any(map(is_neck_bias, state)):
        lines.append('note: build the neck with bias=True; mmdet leaves it out by default (D1)')
    return lines


def _verification(model: Config, source: bridge.Source, converted: bridge.Conversion) -> list[str]:
    """Lines on --verify.

    Raises:
        ValueError: the source's library is not installed, has no such model, or computes something
            else.
    """
    if converted.problems:
        return [
            f'verified: no; {len(converted.problems.lines())} tensors do not fit (see above), so '
            'the two models cannot compute the same'
        ]
    try:
        found = parity.verify(model, source, converted)
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
            f'verified: no; {differences}, expected at most {parity.TOLERANCE:.0e}. The largest is '
            f'at {found.where}. Nothing was written. {reason}'
        )
    if found.by_config:
        return [f'verified: {differences}']
    return [
        f'verified as far as weights tell: {differences}',
        'note: the file brings no config, or none that can be read, so the model that the weights '
        'were compared with has the heads, activations and other settings of --config',
    ]
