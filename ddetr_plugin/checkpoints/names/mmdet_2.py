"""Checkpoints of mmdet 2.x's DETR and Deformable DETR: its names and its config, as mmdet 3's."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ddetr_plugin.checkpoints.files.config_settings import OPERATION_ORDERS
from ddetr_plugin.checkpoints.files.config_text import is_written_out, model_of_config

__all__ = ['START', 'is_mmdet_2', 'mmdet_3_config', 'mmdet_3_name']

# Before the names of encoder and decoder, which mmdet 2 keeps in the head.
START = 'bbox_head.transformer.'
_START = re.escape(START)
# Applied in this order.
_RENAMED = (
    (rf'^{_START}level_embeds$', 'level_embed'),
    (rf'^{_START}reference_points\.', 'reference_points_fc.'),
    (rf'^{_START}enc_output\.', 'memory_trans_fc.'),
    (rf'^{_START}enc_output_norm\.', 'memory_trans_norm.'),
    (rf'^{_START}pos_trans\.', 'pos_trans_fc.'),
    (rf'^{_START}pos_trans_norm\.', 'pos_trans_norm.'),
    (rf'^{_START}((encoder|decoder)\.)', r'\1'),
    (r'^((encoder|decoder)\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
    (r'^((encoder|decoder)\.layers\.\d+)\.attentions\.1\.', r'\1.cross_attn.'),
    (r'^((encoder|decoder)\.layers\.\d+)\.ffns\.0\.', r'\1.ffn.'),
    (r'^bbox_head\.query_embedding\.', 'query_embedding.'),
    # DETR's, which in mmdet 3 is a neck.
    (r'^bbox_head\.input_proj\.', 'neck.convs.0.conv.'),
)
# The parts that became those of mmdet 3; a class of somebody's own may compute anything.
_TYPES = {
    'DeformableDETRHead',
    'DeformableDetrTransformer',
    'DetrTransformerEncoder',
    'DeformableDetrTransformerDecoder',
    'BaseTransformerLayer',
    'DetrTransformerDecoderLayer',
    'MultiScaleDeformableAttention',
    'MultiheadAttention',
    'FFN',
    'SinePositionalEncoding',
}
_LAYER = {'type', 'attn_cfgs', 'ffn_cfgs', 'feedforward_channels', 'ffn_dropout', 'ffn_num_fcs'}
# These do nothing there, or nothing to a trained model.
_LAYER |= {'operation_order', 'norm_cfg', 'act_cfg', 'init_cfg', 'batch_first'}
# What a head has in both.
_HEAD: tuple[str, ...] = ('type', 'num_classes', 'num_reg_fcs', 'sync_cls_avg_factor')
_HEAD += ('loss_cls', 'loss_bbox', 'loss_iou')


def is_mmdet_2(names: Iterable[str]) -> bool:
    """Whether the names are those of a DETR or Deformable DETR of mmdet 2.x."""
    return any(name.startswith(START) for name in names)


def mmdet_3_name(name: str) -> str:
    """What mmdet 3 calls a tensor of mmdet 2.x; most of a backbone, neck or head is the same."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def mmdet_3_config(text: str) -> str | None:
    """The model of a Deformable DETR's config, as mmdet 3 writes it: ``model = dict(...)``.

    Args:
        text: a config of mmdet 2.x, in Python. It is read, not run.

    Returns:
        None if the text is no such config, or names parts of somebody's own. Where the norms of a
        layer come first, it has that `operation_order`, with which mmdet 3 builds nothing.
    """
    model = model_of_config(text)
    if not is_written_out(model):
        return None
    try:
        return f'model = {_written(_upgraded(model))}\n'
    # Whatever else the text says, or leaves out, of which there is no end.
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _upgraded(model: Mapping) -> dict:
    head = model['bbox_head']
    transformer = head['transformer']
    two_stage = head.get('as_two_stage', False)
    queries = transformer.get('two_stage_num_proposals', 300) if two_stage else head['num_query']
    positions = head['positional_encoding']
    for part in (head, transformer, transformer['encoder'], transformer['decoder'], positions):
        _require_known(part)
    (encoder_attention,), encoder_layer = _layer(transformer['encoder'], 'encoder')
    (self_attention, cross_attention), decoder_layer = _layer(transformer['decoder'], 'decoder')
    return {
        'type': 'DeformableDETR',
        'num_queries': queries,
        'num_feature_levels': transformer.get('num_feature_levels', 4),
        'with_box_refine': head.get('with_box_refine', False),
        'as_two_stage': two_stage,
        'backbone': model['backbone'],
        'neck': model['neck'],
        'encoder': {
            'num_layers': transformer['encoder']['num_layers'],
            'layer_cfg': {'self_attn_cfg': encoder_attention, **encoder_layer},
        },
        'decoder': {
            'num_layers': transformer['decoder']['num_layers'],
            'return_intermediate': True,
            'layer_cfg': {
                'self_attn_cfg': self_attention,
                'cross_attn_cfg': cross_attention,
                **decoder_layer,
            },
            'post_norm_cfg': None,
        },
        'positional_encoding': _without(positions, 'type'),
        'bbox_head': {
            **{key: head[key] for key in _HEAD if key in head},
            'embed_dims': decoder_layer['ffn_cfg']['embed_dims'],
        },
    }


def _layer(coder: Mapping, name: str) -> tuple[list[dict], dict]:
    """Configs of the attentions, and of what else there is, of the layers of a coder."""
    layer = coder['transformerlayers']
    order = OPERATION_ORDERS[f'{name} operation order']
    attentions = sum(part.endswith('attn') for part in order)
    config = layer['attn_cfgs']
    configs = config if isinstance(config, Sequence) else [config] * attentions
    ffn = layer.get('ffn_cfgs', {})
    for part in (layer, ffn, *configs):
        _require_known(part)
    if len(configs) != attentions or not layer.keys() <= _LAYER:
        raise KeyError('transformerlayers')
    # What mmcv 1.x calls them since and before its `ffn_cfgs`; the latter wins.
    ffn = {**_without(ffn, 'type'), 'embed_dims': configs[0].get('embed_dims', 256)}
    for old, new in (
        ('feedforward_channels', 'feedforward_channels'),
        ('ffn_dropout', 'ffn_drop'),
        ('ffn_num_fcs', 'num_fcs'),
    ):
        if old in layer:
            ffn[new] = layer[old]
    others = {'ffn_cfg': ffn}
    if 'norm_cfg' in layer:
        others['norm_cfg'] = layer['norm_cfg']
    if tuple(layer.get('operation_order', order)) != order:
        others['operation_order'] = layer['operation_order']
    return [{**_without(config, 'type'), 'batch_first': True} for config in configs], others


def _require_known(part: Mapping) -> None:
    if 'type' in part and part['type'] not in _TYPES:
        raise ValueError(f'a {part["type"]} is none of mmdet 2.x')


def _without(config: Mapping, key: str) -> dict:
    return {k: v for k, v in config.items() if k != key}


def _written(value: Any) -> str:
    """A value as mmengine writes configs: ``dict(key=value)`` wherever keys allow it."""
    if not isinstance(value, dict) or not all(str(key).isidentifier() for key in value):
        return repr(value)
    return f'dict({", ".join(f"{key}={_written(item)}" for key, item in value.items())})'
