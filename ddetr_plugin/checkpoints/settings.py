"""What files say of a model that its weights do not show, such as the heads of its attention."""

import ast
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ['file_settings', 'our_settings', 'setting_mismatches', 'transformers_settings']

_TRANSFORMERS = {
    'with_box_refine': 'with_box_refine',
    'two_stage': 'two_stage',
    'levels': 'num_feature_levels',
    'encoder heads': 'encoder_attention_heads',
    'decoder heads': 'decoder_attention_heads',
    'encoder points': 'encoder_n_points',
    'decoder points': 'decoder_n_points',
}
_OURS = {
    'with_box_refine': 'decoder.refine',
    'levels': 'encoder.layers.0.self_attn.num_levels',
    'encoder heads': 'encoder.layers.0.self_attn.num_heads',
    'decoder heads': 'decoder.layers.0.cross_attn.num_heads',
    'encoder points': 'encoder.layers.0.self_attn.num_points',
    'decoder points': 'decoder.layers.0.cross_attn.num_points',
}


def file_settings(meta: Mapping, dialect: str) -> dict[str, int]:
    """What a file says; of what it does not say there is no entry.

    Args:
        meta: of a `Source`: its `settings`, which come from config.json, or, for 'mmdet', the
            Runner's config, its `cfg`.
        dialect: what wrote the file.

    Returns:
        Numbers and booleans: with_box_refine, two_stage, levels, and heads and points of the
        deformable attention, as 'encoder heads'.
    """
    if dialect == 'hf' and isinstance(meta.get('settings'), Mapping):
        return dict(meta['settings'])
    if dialect == 'mmdet' and isinstance(meta.get('cfg'), str):
        return _mmdet_settings(meta['cfg'])
    return {}


def transformers_settings(config: Mapping) -> dict[str, int]:
    """The settings in the content of a config.json."""
    return {k: config[v] for k, v in _TRANSFORMERS.items() if isinstance(config.get(v), int)}


def our_settings(model: nn.Module) -> dict[str, int]:
    """The settings of a model of ours, as far as its parts have them."""
    found = {key: _attribute(model, path) for key, path in _OURS.items()}
    found['two_stage'] = _attribute(model, 'query_head.pos_trans_fc') is not None
    return {key: value for key, value in found.items() if isinstance(value, int)}


def setting_mismatches(meta: Mapping, dialect: str, model: nn.Module) -> list[str]:
    """What a file says otherwise than a model of ours is, a phrase each: 'encoder heads 2, not 4'.

    Heads and points show in no shape: 2 x 4 weights load into 4 x 2, which computes other numbers.

    Args:
        meta: of a `Source`.
        dialect: what wrote it.
        model: ours.
    """
    ours = our_settings(model)
    return [
        f'{key} {said}, not {ours[key]}'
        for key, said in file_settings(meta, dialect).items()
        if key in ours and said != ours[key]
    ]


def _attribute(holder: Any, path: str) -> Any:
    for name in path.split('.'):
        holder = getattr(holder, name, None)
    return holder


def _mmdet_settings(text: str) -> dict[str, int]:
    model = _model_of(text)
    known = str(model.get('type')).endswith('DeformableDETR')
    found = {
        'with_box_refine': model.get('with_box_refine', False if known else None),
        'two_stage': model.get('as_two_stage', False if known else None),
        'levels': model.get('num_feature_levels'),
    }
    for coder, attention in (('encoder', 'self_attn_cfg'), ('decoder', 'cross_attn_cfg')):
        config = model
        for key in (coder, 'layer_cfg', attention):
            config = config.get(key) if isinstance(config, dict) else None
        if isinstance(config, dict):
            # The defaults of mmcv's MultiScaleDeformableAttention.
            found[f'{coder} heads'] = config.get('num_heads', 8)
            found[f'{coder} points'] = config.get('num_points', 4)
    return {key: value for key, value in found.items() if isinstance(value, int)}


def _model_of(text: str) -> dict:
    """`model` of a config in Python, which is read but not run; empty if it cannot be told."""
    try:
        statements = ast.parse(text).body
        for statement in statements:
            names = [t.id for t in getattr(statement, 'targets', ()) if isinstance(t, ast.Name)]
            if 'model' in names:
                model = _literal(statement.value)  # type: ignore[attr-defined]
                return model if isinstance(model, dict) else {}
    except (MemoryError, RecursionError, SyntaxError, ValueError):
        pass
    return {}


def _literal(node: ast.expr) -> Any:
    """Numbers, words and dicts of them; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {word.arg: _literal(word.value) for word in node.keywords}
    if isinstance(node, ast.Dict):
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values) if k is not None}
    return node.value if isinstance(node, ast.Constant) else None
