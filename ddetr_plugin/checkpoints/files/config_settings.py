"""What other libraries' model configs say of a model that its weights do not show."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ddetr_plugin.checkpoints.names.resnets import RESNETS

__all__ = [
    'OPERATION_ORDERS',
    'RELEASED',
    'activation_name',
    'mmdet_settings',
    'official_settings',
    'plugin_settings',
    'transformers_settings',
]

# Where the first block of a stage has its stride: in the 3 x 3 or in the first 1 x 1 convolution.
_STYLES = {False: 'pytorch', True: 'caffe'}

# Of a layer's parts, in mmcv's words; those of mmdet 2.x may have their norms first.
OPERATION_ORDERS = {
    'encoder operation order': ('self_attn', 'norm', 'ffn', 'norm'),
    'decoder operation order': ('self_attn', 'norm', 'cross_attn', 'norm', 'ffn', 'norm'),
}
_POSITIONS = ('temperature', 'offset', 'normalize', 'scale', 'eps')
_MMDET_POSITIONS = dict(temperature=10000, offset=0.0, normalize=False, scale=2 * math.pi, eps=1e-6)
# The official release and transformers write them into their code.
_CONSTANTS = {
    'neck groups': 32,
    'neck norm eps': 1e-5,
    'neck activation': 'none',
    'encoder norm eps': 1e-5,
    'decoder norm eps': 1e-5,
    'backbone norm eps': 1e-5,
    'positional encoding temperature': 10000,
    'positional encoding offset': -0.5,
    'positional encoding normalize': True,
    'positional encoding scale': 2 * math.pi,
    'positional encoding eps': 1e-6,
    **OPERATION_ORDERS,
}
_OFFICIAL_CONSTANTS = {
    **_CONSTANTS,
    'encoder activation': 'relu',
    'decoder activation': 'relu',
    'backbone activation': 'relu',
    'backbone style': 'pytorch',
}
# What the models of the paper have, and the configs here.
RELEASED = {
    **_OFFICIAL_CONSTANTS,
    'encoder heads': 8,
    'decoder self-attention heads': 8,
    'decoder cross-attention heads': 8,
    'encoder points': 4,
    'decoder points': 4,
    'backbone strides': (1, 2, 2, 2),
    'pixel mean': (123.675, 116.28, 103.53),
    'pixel std': (58.395, 57.12, 57.375),
    'pixel channels': 'RGB',
}
_OFFICIAL = {
    'levels': 'num_feature_levels',
    'encoder heads': 'nheads',
    'decoder self-attention heads': 'nheads',
    'decoder cross-attention heads': 'nheads',
    'encoder points': 'enc_n_points',
    'decoder points': 'dec_n_points',
}
_TRANSFORMERS = {
    'with_box_refine': 'with_box_refine',
    'two_stage': 'two_stage',
    'levels': 'num_feature_levels',
    'encoder heads': 'encoder_attention_heads',
    'decoder self-attention heads': 'decoder_attention_heads',
    'decoder cross-attention heads': 'decoder_attention_heads',
    'encoder points': 'encoder_n_points',
    'decoder points': 'decoder_n_points',
}


def activation_name(name: str) -> str:
    """One name for an activation in every library: 'relu' of ReLU, 'silu' of Swish."""
    name = name.rpartition('.')[2].lower()
    return {'swish': 'silu'}.get(name, name)


def official_settings(args: Mapping) -> dict[str, Any]:
    """The settings in the command line that a file of the official release brings.

    Whether boxes are refined, and in two stages, the names of the weights tell.
    """
    found = {k: args[v] for k, v in _OFFICIAL.items() if isinstance(args.get(v), int)}
    # The command line of another program has other words.
    return {**_OFFICIAL_CONSTANTS, **found} if 'nheads' in args else {}


def transformers_settings(config: Mapping) -> dict[str, Any]:
    """The settings in the content of a config.json; see `stated_settings.file_settings`."""
    found = {k: config[v] for k, v in _TRANSFORMERS.items() if isinstance(config.get(v), int)}
    if config.get('two_stage'):
        found['proposals'] = config.get('two_stage_num_proposals', 300)
    act = config.get('activation_function')
    if isinstance(act, str):
        found['encoder activation'] = found['decoder activation'] = activation_name(act)
    if config.get('model_type') == 'deformable_detr':
        found.update(_CONSTANTS)
        if config.get('position_embedding_type', 'sine') != 'sine':
            found = {k: v for k, v in found.items() if not k.startswith('positional encoding ')}
        found.update(_transformers_backbone(config))
    return found


def _transformers_backbone(config: Mapping) -> Iterator[tuple[str, Any]]:
    backbone = config.get('backbone_config')
    name = config.get('backbone')
    if isinstance(backbone, Mapping) and backbone.get('model_type') == 'resnet':
        bottleneck = backbone.get('layer_type', 'bottleneck') == 'bottleneck'
        depths = backbone.get('depths', (3, 4, 6, 3))
        for depth, sizes in RESNETS.items():
            if isinstance(depths, list | tuple) and sizes == (tuple(depths), bottleneck):
                yield 'backbone depth', depth
        yield 'backbone activation', activation_name(str(backbone.get('hidden_act', 'relu')))
        first = 2 if backbone.get('downsample_in_first_stage') else 1
        yield 'backbone strides', (first, 2, 2, 2)
        if bottleneck:
            yield 'backbone style', _STYLES[bool(backbone.get('downsample_in_bottleneck'))]
        return
    if isinstance(backbone, Mapping):
        name = backbone.get('backbone', name)
    found = re.fullmatch(r'resnet(\d+)', str(name))
    if found:
        # timm's: strides follow from the dilation, which is compared by itself.
        yield 'backbone depth', int(found[1])
        yield 'backbone activation', 'relu'
        if int(found[1]) in RESNETS and RESNETS[int(found[1])][1]:
            yield 'backbone style', 'pytorch'


def mmdet_settings(model: Mapping) -> dict[str, Any]:
    """The settings in `model` of a config of mmdet 3; see `stated_settings.file_settings`.

    What a part does not say has mmdet's default; of parts that are not there, there is nothing.
    """
    known = str(model.get('type')).endswith('DeformableDETR')
    found: dict[str, Any] = {
        'with_box_refine': model.get('with_box_refine', False if known else None),
        'two_stage': model.get('as_two_stage', False if known else None),
        'levels': model.get('num_feature_levels'),
    }
    if found['two_stage']:
        found['proposals'] = model.get('num_queries')
    return _plain({**found, **dict(_parts(model, '_cfg', known))})


def plugin_settings(model: Mapping) -> dict[str, Any]:
    """The settings in `model` of a config of this package; see `stated_settings.file_settings`.

    What a part does not say has the default of the parts that come with this package.
    """
    if not str(model.get('type')).endswith('DeformableDETR'):
        return {}
    queries, decoder = _part(model, 'query_head') or {}, _part(model, 'decoder') or {}
    found: dict[str, Any] = {
        'with_box_refine': decoder.get('refine', False),
        'two_stage': 'TwoStage' in str(queries.get('type')),
        'levels': (_part(model, 'encoder') or {}).get('num_levels'),
    }
    if found['two_stage']:
        found['proposals'] = queries.get('num_queries')
    return _plain({**found, **dict(_parts(model, '', True))})


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    # Lists are tuples once they were written.
    found = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    return {k: v for k, v in found.items() if isinstance(v, bool | int | float | str | tuple)}


def _parts(model: Mapping, suffix: str, known: bool) -> Iterator[tuple[str, Any]]:
    """Settings of the parts that mmdet's models and ours have in common.

    Args:
        model: a config.
        suffix: of the keys in a layer, such as `self_attn_cfg`.
        known: the model is a Deformable DETR, so that what is not there has a default.
    """
    # The defaults of mmcv's attentions and FFN, and of torch's norms, which are ours, too.
    for key, path in (
        ('encoder', f'encoder.layer{suffix}.self_attn{suffix}'),
        ('decoder cross-attention', f'decoder.layer{suffix}.cross_attn{suffix}'),
    ):
        attention = _part(model, path)
        if attention is not None:
            yield f'{key} heads', attention.get('num_heads', 8)
            yield f'{key.split()[0]} points', attention.get('num_points', 4)
    attention = _part(model, f'decoder.layer{suffix}.self_attn{suffix}')
    if attention is not None:
        yield 'decoder self-attention heads', attention.get('num_heads', None if suffix else 8)
    for coder in ('encoder', 'decoder'):
        layer = _part(model, f'{coder}.layer{suffix}')
        if layer is None:
            continue
        ffn = _part(layer, f'ffn{suffix}')
        if ffn is not None:
            yield f'{coder} activation', _activation(ffn, 'ReLU')
        yield f'{coder} norm eps', _eps(layer, f'norm{suffix}')
        order = f'{coder} operation order'
        yield order, layer.get('operation_order', OPERATION_ORDERS[order])
    positions = _part(model, 'positional_encoding')
    if positions is not None:
        said = {k: positions.get(k, _MMDET_POSITIONS[k]) for k in _POSITIONS}
        # Without `normalize` the others but the temperature do nothing.
        for key in _POSITIONS if said['normalize'] else ('temperature', 'normalize'):
            yield f'positional encoding {key}', said[key]
    neck = _part(model, 'neck')
    if neck is not None and str(neck.get('type')).endswith('ChannelMapper'):
        yield 'neck groups', (_part(neck, 'norm_cfg') or {}).get('num_groups')
        yield 'neck norm eps', _eps(neck)
        yield 'neck activation', _activation(neck, 'ReLU')
    if known:
        yield from _mmdet_backbone(_part(model, 'backbone') or {})
        yield from _mmdet_pixels(_part(model, 'data_preprocessor') or {})


def _mmdet_backbone(backbone: Mapping) -> Iterator[tuple[str, Any]]:
    if not str(backbone.get('type')).endswith('ResNet'):
        return
    depth = backbone.get('depth')
    yield 'backbone depth', depth
    yield 'backbone activation', 'relu'
    yield 'backbone strides', tuple(backbone.get('strides', (1, 2, 2, 2)))
    yield 'backbone norm eps', _eps(backbone)
    if depth in RESNETS and RESNETS[depth][1]:
        yield 'backbone style', backbone.get('style', 'pytorch')


def _mmdet_pixels(preprocessor: Mapping) -> Iterator[tuple[str, Any]]:
    """How pictures become numbers; OpenCV reads them as BGR."""
    for key in ('mean', 'std'):
        numbers = preprocessor.get(key)
        if isinstance(numbers, list | tuple):
            yield f'pixel {key}', tuple(numbers)
    if preprocessor:
        flips = preprocessor.get('bgr_to_rgb') or preprocessor.get('rgb_to_bgr')
        yield 'pixel channels', 'RGB' if flips else 'BGR'


def _part(config: Mapping, path: str) -> Mapping | None:
    part: Any = config
    for key in path.split('.'):
        part = part.get(key) if isinstance(part, Mapping) else None
    return part if isinstance(part, Mapping) else None


def _activation(config: Mapping, default: str) -> str:
    if 'act_cfg' in config and config['act_cfg'] is None:
        return 'none'
    act = _part(config, 'act_cfg') or {'type': default}
    return activation_name(str(act.get('type')))


def _eps(config: Mapping, key: str = 'norm_cfg') -> Any:
    return (_part(config, key) or {}).get('eps', 1e-5)
