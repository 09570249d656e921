"""Checkpoints of mmdet 2.x's DETR and Deformable DETR: its names and its config, as mmdet 3's."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
# What a head has in both.
_HEAD = ('type', 'num_classes', 'num_reg_fcs', 'sync_cls_avg_factor')
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
        None if the text is no such config.
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
    (encoder_attention,), encoder_ffn = _layer(transformer['encoder'], 1)
    (self_attention, cross_attention), decoder_ffn = _layer(transformer['decoder'], 2)
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
            'layer_cfg': {'self_attn_cfg': encoder_attention, 'ffn_cfg': encoder_ffn},
        },
        'decoder': {
            'num_layers': transformer['decoder']['num_layers'],
            'return_intermediate': True,
            'layer_cfg': {
                'self_attn_cfg': self_attention,
                'cross_attn_cfg': cross_attention,
                'ffn_cfg': decoder_ffn,
            },
            'post_norm_cfg': None,
        },
        'positional_encoding': _without(head['positional_encoding'], 'type'),
        'bbox_head': {
            **{key: head[key] for key in _HEAD if key in head},
            'embed_dims': decoder_ffn['embed_dims'],
        },
    }


def _layer(coder: Mapping, attentions: int) -> tuple[list[dict], dict]:
    """Configs of the attentions and of the FFN of the layers of an encoder or decoder."""
    layer = coder['transformerlayers']
    config = layer['attn_cfgs']
    configs = config if isinstance(config, Sequence) else [config] * attentions
    if len(configs) != attentions:
        raise KeyError('attn_cfgs')
    ffn = layer.get('ffn_cfgs', {})
    # What mmcv 1.x calls them since and before its `ffn_cfgs`; the latter wins.
    ffn = {**_without(ffn, 'type'), 'embed_dims': configs[0].get('embed_dims', 256)}
    for old, new in (
        ('feedforward_channels', 'feedforward_channels'),
        ('ffn_dropout', 'ffn_drop'),
        ('ffn_num_fcs', 'num_fcs'),
    ):
        if old in layer:
            ffn[new] = layer[old]
    return [{**_without(config, 'type'), 'batch_first': True} for config in configs], ffn


def _without(config: Mapping, key: str) -> dict:
    return {k: v for k, v in config.items() if k != key}


def _written(value: Any) -> str:
    """A value as mmengine writes configs: ``dict(key=value)`` wherever keys allow it."""
    if not isinstance(value, dict) or not all(str(key).isidentifier() for key in value):
        return repr(value)
    return f'dict({", ".join(f"{key}={_written(item)}" for key, item in value.items())})'
