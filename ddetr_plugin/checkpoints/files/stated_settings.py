"""What files say of a model that its weights do not show, such as the heads of its attention."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ddetr_plugin.checkpoints.files import config_settings
from ddetr_plugin.checkpoints.files.config_settings import (
    OPERATION_ORDERS,
    RELEASED,
    activation_name,
)
from ddetr_plugin.checkpoints.files.config_text import model_of_config
from ddetr_plugin.checkpoints.names.detect import OURS

__all__ = [
    'file_settings',
    'our_settings',
    'setting_mismatches',
    'transformers_settings',
    'unusual_settings',
]

_OURS = {
    'with_box_refine': 'decoder.refine',
    'levels': 'encoder.layers.0.self_attn.num_levels',
    'encoder heads': 'encoder.layers.0.self_attn.num_heads',
    'decoder self-attention heads': 'decoder.layers.0.self_attn.num_heads',
    'decoder cross-attention heads': 'decoder.layers.0.cross_attn.num_heads',
    'encoder points': 'encoder.layers.0.self_attn.num_points',
    'decoder points': 'decoder.layers.0.cross_attn.num_points',
    'encoder norm eps': 'encoder.layers.0.norms.0.eps',
    'decoder norm eps': 'decoder.layers.0.norms.0.eps',
    'neck groups': 'neck.convs.0.gn.num_groups',
    'neck norm eps': 'neck.convs.0.gn.eps',
    'positional encoding temperature': 'positional_encoding.temperature',
    'positional encoding normalize': 'positional_encoding.normalize',
    'backbone depth': 'backbone.depth',
    'backbone strides': 'backbone.strides',
    'backbone norm eps': 'backbone.bn1.eps',
    'backbone style': 'backbone.style',
}
_NORMALISED = {
    f'positional encoding {key}': f'positional_encoding.{key}' for key in ('offset', 'scale', 'eps')
}
# Of the content of a config.json: names of classes are kept elsewhere.
_LABELS = ('id2label', 'label2id')


def file_settings(meta: Mapping, dialect: str) -> dict[str, Any]:
    """What a file says; of what it does not say there is no entry.

    Args:
        meta: of a `Source`: its `settings`, which come from config.json; a Runner's config, its
            `cfg`; the command line of the official release, its `args`; or what the file was
            converted from said, in its `conversion`.
        dialect: what wrote the file.

    Returns:
        Numbers, booleans and words: with_box_refine, two_stage, levels, proposals (of a two-stage
        model); heads and points of each attention; activation, norms, positional encoding, style
        of the backbone, and how pixels are normalised, as 'encoder heads'.
    """
    if dialect == 'transformers' and isinstance(meta.get('settings'), Mapping):
        return config_settings.transformers_settings(meta['settings'])
    if dialect == 'official' and isinstance(meta.get('args'), Mapping):
        return config_settings.official_settings(meta['args'])
    read = {'mmdet': config_settings.mmdet_settings, OURS: config_settings.plugin_settings}
    if dialect in read and isinstance(meta.get('cfg'), str):
        return read[dialect](model_of_config(meta['cfg']))
    conversion = meta.get('conversion')
    said = conversion.get('settings') if isinstance(conversion, Mapping) else None
    return dict(said) if isinstance(said, Mapping) else {}


def transformers_settings(config: Mapping) -> dict[str, Any]:
    """What is kept of the content of a config.json to compare and to build its model: the model."""
    return {key: value for key, value in config.items() if key not in _LABELS}


def our_settings(model: nn.Module) -> dict[str, Any]:
    """The settings of a model of ours, as far as its parts have them."""
    found = {key: _attribute(model, path) for key, path in _OURS.items()}
    found['two_stage'] = _attribute(model, 'query_head.pos_trans_fc') is not None
    if found['two_stage']:
        found['proposals'] = _attribute(model, 'query_head.num_queries')
    if found['positional encoding normalize']:
        found.update({key: _attribute(model, path) for key, path in _NORMALISED.items()})
    for coder in ('encoder', 'decoder'):
        found[f'{coder} activation'] = _ffn_activation(_attribute(model, f'{coder}.layers.0.ffn'))
    neck = _attribute(model, 'neck.convs.0')
    if hasattr(neck, 'with_activation'):
        act = neck.activate if neck.with_activation else None
        found['neck activation'] = 'none' if act is None else activation_name(type(act).__name__)
    relu = _attribute(model, 'backbone.relu')
    if isinstance(relu, nn.Module):
        found['backbone activation'] = activation_name(type(relu).__name__)
    found.update(_pixels(model))
    for coder in ('encoder', 'decoder'):
        layer = type(_attribute(model, f'{coder}.layers.0')).__name__
        if layer == f'DeformableTransformer{coder.capitalize()}Layer':
            key = f'{coder} operation order'
            found[key] = OPERATION_ORDERS[key]
    plain = (bool, int, float, str, tuple)
    return {key: value for key, value in found.items() if isinstance(value, plain)}


def setting_mismatches(meta: Mapping, dialect: str, model: nn.Module) -> list[str]:
    """What a file says otherwise than a model of ours is, a phrase each: 'encoder heads 2, not 4'.

    These settings show in no shape: 2 x 4 weights load into 4 x 2, which computes other numbers.

    Args:
        meta: of a `Source`.
        dialect: what wrote it.
        model: ours.
    """
    return _differences(file_settings(meta, dialect), our_settings(model))


def unusual_settings(meta: Mapping, dialect: str) -> list[str]:
    """What a file says otherwise than the paper's models and the configs here are.

    Args:
        meta: of a `Source`.
        dialect: what wrote it.

    Returns:
        A phrase each, as those of `setting_mismatches`.
    """
    return _differences(file_settings(meta, dialect), RELEASED)


def _differences(said: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [
        f'{key} {_shown(value)}, not {_shown(wanted[key])}'
        for key, value in said.items()
        if key in wanted and not _same(value, wanted[key])
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    # Written in more or fewer digits, or kept in float32.
    numbers = all(isinstance(x, int | float) for x in (one, other))
    return math.isclose(one, other, rel_tol=1e-5) if numbers else one == other


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f'({", ".join(map(_shown, value))})'
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def _ffn_activation(ffn: Any) -> str | None:
    """Ours says it; mmcv's has a module for it."""
    name = getattr(ffn, 'activation', None)
    if isinstance(name, str):
        return name
    act = _attribute(ffn, 'layers.0.1')
    return activation_name(type(act).__name__) if isinstance(act, nn.Module) else None


def _pixels(model: nn.Module) -> dict[str, Any]:
    """How its preprocessor makes numbers of pictures, which OpenCV reads as BGR."""
    preprocessor = _attribute(model, 'data_preprocessor')
    found: dict[str, Any] = {}
    for key in ('mean', 'std'):
        numbers = getattr(preprocessor, key, None)
        # On the device 'meta' there are no numbers to compare.
        if isinstance(numbers, Tensor) and not numbers.is_meta:
            found[f'pixel {key}'] = tuple(numbers.flatten().tolist())
    flips = getattr(preprocessor, '_channel_conversion', None)
    if isinstance(flips, bool):
        found['pixel channels'] = 'RGB' if flips else 'BGR'
    return found


def _attribute(holder: Any, path: str) -> Any:
    for name in path.split('.'):
        holder = getattr(holder, name, None)
    return holder
