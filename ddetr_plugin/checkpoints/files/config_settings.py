"""What other libraries' model configs say of a model that its weights do not show."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ddetr_plugin.checkpoints.names.resnets import RESNETS

__all__ = ['activation_name', 'mmdet_settings', 'transformers_settings']

# Where the first block of a stage has its stride: in the 3 x 3 or in the first 1 x 1 convolution.
_STYLES = {False: 'pytorch', True: 'caffe'}

_POSITIONS = ('temperature', 'offset', 'normalize', 'scale', 'eps')
_MMDET_POSITIONS = dict(temperature=10000, offset=0.0, normalize=False, scale=2 * math.pi, eps=1e-6)
# transformers writes them into its code.
_TRANSFORMERS_CONSTANTS = {
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


def transformers_settings(config: Mapping) -> dict[str, Any]:
    """The settings in the content of a config.json; see `settings.file_settings`."""
    found = {k: config[v] for k, v in _TRANSFORMERS.items() if isinstance(config.get(v), int)}
    if config.get('two_stage'):
        found['proposals'] = config.get('two_stage_num_proposals', 300)
    act = config.get('activation_function')
    if isinstance(act, str):
        found['encoder activation'] = found['decoder activation'] = activation_name(act)
    if config.get('model_type') == 'deformable_detr':
        found.update(_TRANSFORMERS_CONSTANTS)
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
    """The settings in `model` of a config of mmdet 3; see `settings.file_settings`.

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
    # The defaults of mmcv's attentions and FFN, and of torch's norms.
    for key, path in (
        ('encoder', 'encoder.layer_cfg.self_attn_cfg'),
        ('decoder cross-attention', 'decoder.layer_cfg.cross_attn_cfg'),
    ):
        attention = _part(model, path)
        if attention is not None:
            found[f'{key} heads'] = attention.get('num_heads', 8)
            found[f'{key.split()[0]} points'] = attention.get('num_points', 4)
    attention = _part(model, 'decoder.layer_cfg.self_attn_cfg')
    if attention is not None:
        found['decoder self-attention heads'] = attention.get('num_heads')
    for coder in ('encoder', 'decoder'):
        ffn = _part(model, f'{coder}.layer_cfg.ffn_cfg')
        if ffn is not None:
            found[f'{coder} activation'] = _activation(ffn, 'ReLU')
        layer = _part(model, f'{coder}.layer_cfg')
        if layer is not None:
            found[f'{coder} norm eps'] = _eps(layer)
    positions = _part(model, 'positional_encoding')
    if positions is not None:
        said = {k: positions.get(k, _MMDET_POSITIONS[k]) for k in _POSITIONS}
        # Without `normalize` the others but the temperature do nothing.
        keys = _POSITIONS if said['normalize'] else ('temperature', 'normalize')
        found.update({f'positional encoding {k}': said[k] for k in keys})
    neck = _part(model, 'neck')
    if neck is not None and str(neck.get('type')).endswith('ChannelMapper'):
        norm = _part(neck, 'norm_cfg') or {}
        found['neck groups'] = norm.get('num_groups')
        found['neck norm eps'] = _eps(neck)
        found['neck activation'] = _activation(neck, 'ReLU')
    if known:
        found.update(_mmdet_backbone(_part(model, 'backbone') or {}))
        found.update(_mmdet_pixels(_part(model, 'data_preprocessor') or {}))
    plain = (bool, int, float, str, tuple)
    return {key: value for key, value in found.items() if isinstance(value, plain)}


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


def _eps(config: Mapping) -> Any:
    return (_part(config, 'norm_cfg') or {}).get('eps', 1e-5)
