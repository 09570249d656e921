"""The model that wrote a file, built by its own library from the config that the file brings."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ddetr_plugin.checkpoints.files.config_text import is_written_out, model_of_config
from ddetr_plugin.checkpoints.names.resnets import RESNETS
from ddetr_plugin.checkpoints.names.table import with_common_names
from ddetr_plugin.checkpoints.parity.transformers_models import (
    own_resnet,
    timm_resnet,
    transformers_with,
)

__all__ = ['source_model']

# A checkpoint may name any class, and building runs its constructor. These take sizes and numbers.
_HARMLESS = (
    'mmcv.cnn',
    'mmcv.ops',
    'mmdet.models.backbones',
    'mmdet.models.dense_heads',
    'mmdet.models.layers',
    'mmdet.models.losses',
    'mmdet.models.necks',
    'torch.nn',
)
_MMDET_PARTS = (
    'num_queries',
    'num_feature_levels',
    'with_box_refine',
    'as_two_stage',
    'backbone',
    'neck',
    'encoder',
    'decoder',
    'positional_encoding',
    'bbox_head',
)
_INITIALISATION = ('init_cfg', 'pretrained')


def source_model(state: Mapping[str, Tensor], meta: Mapping, dialect: str) -> nn.Module | None:
    """The model of a file, with its weights.

    Args:
        state: the weights, by the names of the dialect.
        meta: of a `Source`, where `file_settings` finds the config.
        dialect: 'mmdet' or 'transformers'.

    Returns:
        None if the file brings no config.

    Raises:
        ImportError: the library is not installed.
        ValueError: the config is of another model, names what cannot be built safely, or does not
            fit the weights.
    """
    state = with_common_names(state, dialect)
    if dialect == 'transformers':
        settings = meta.get('settings')
        return _transformers(settings, state) if settings else None
    model = model_of_config(meta['cfg']) if isinstance(meta.get('cfg'), str) else {}
    # What is written elsewhere about a model, in other words than mmdet's, is no config of it.
    return _mmdet(model, state) if 'type' in model else None


def _mmdet(model: dict, state: Mapping[str, Tensor]) -> nn.Module:
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    if str(model['type']).rpartition('.')[2] != 'DeformableDETR':
        raise ValueError(
            f"the config in the file is of a {model['type']}, expected mmdet's DeformableDETR"
        )
    parts = {key: model[key] for key in _MMDET_PARTS if key in model}
    if not is_written_out(parts):
        raise ValueError('the config in the file is not written out: it has variables or calls')
    parts = _safe(parts, 'model')
    # Its default, as every config has it, is not what the decoder can do.
    parts.setdefault('decoder', {}).setdefault('post_norm_cfg', None)
    try:
        with DefaultScope.overwrite_default_scope('mmdet'):
            built = MODELS.build(dict(type='mmdet.DeformableDETR', **parts))
        built.load_state_dict(state)
    # Whatever a constructor says to arguments that it cannot take.
    except Exception as error:
        raise ValueError(
            f'mmdet cannot build the model of the config in the file, or load its weights: {error}'
        ) from error
    return built


def _safe(config: Any, place: str) -> Any:
    """`config` with registered names for types, and without initialisation, which may load files.

    Raises:
        ValueError: a type is not among what mmdet builds detectors of.
    """
    if isinstance(config, list | tuple):
        return type(config)(_safe(item, f'{place}[{i}]') for i, item in enumerate(config))
    if not isinstance(config, dict):
        return config
    safe = {k: _safe(v, f'{place}.{k}') for k, v in config.items() if k not in _INITIALISATION}
    if 'type' in safe:
        safe['type'] = _registered(safe['type'], place)
    return safe


def _registered(name: Any, place: str) -> str:
    from mmdet.registry import MODELS

    # Written with its module where the config was in mmengine's pure Python style. Looked up here:
    # the registry itself would import whatever a name with dots says.
    short = str(name).rpartition('.')[2]
    registry = MODELS
    registry.import_from_location()
    while registry is not None:
        kind = registry.module_dict.get(short)
        if kind is not None:
            module = getattr(inspect.getmodule(kind), '__name__', '')
            if any(f'{module}.'.startswith(f'{start}.') for start in _HARMLESS):
                return short
            break
        registry = registry.parent
    raise ValueError(
        f"the config in the file names {name!r} in {place}, which is none of mmdet's layers, "
        'backbones, necks, heads or losses'
    )


def _transformers(settings: Mapping, state: Mapping[str, Tensor]) -> nn.Module:
    from transformers import DeformableDetrConfig

    if settings.get('model_type') != 'deformable_detr':
        raise ValueError(
            f'config.json is of a {settings.get("model_type")}, expected deformable_detr'
        )
    words = {k: v for k, v in settings.items() if k not in ('dtype', 'torch_dtype', 'backbone')}
    # Which class rows there are the weights say; names of classes do not matter here.
    bias = next((t for n, t in state.items() if n.endswith('class_embed.0.bias')), None)
    words['num_labels'] = len(bias) if bias is not None else settings.get('num_labels', 2)
    words['auxiliary_loss'] = False
    words['backbone_config'] = _backbone(settings)
    try:
        return transformers_with(DeformableDetrConfig.from_dict(words), state)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f'transformers cannot build the model of config.json, or load its weights: {error}'
        ) from error


def _backbone(settings: Mapping) -> Any:
    """The config of the backbone, which never asks for weights of its own.

    Raises:
        ImportError: it is dilated, and timm is not installed.
        ValueError: it is no ResNet.
    """
    from transformers import ResNetConfig

    said = settings.get('backbone_config') or {}
    if said.get('model_type') == 'resnet':
        return ResNetConfig.from_dict(dict(said))
    name = said.get('backbone') or settings.get('backbone') or 'resnet50'
    found = re.fullmatch(r'resnet(\d+)', name)
    if not found or int(found[1]) not in RESNETS:
        raise ValueError(f"the comparison needs a ResNet of transformers or timm, got '{name}'")
    several = settings.get('num_feature_levels', 4) > 1
    indices = tuple(said.get('out_indices') or ((2, 3, 4) if several else (4,)))
    dilated = said.get('output_stride', 16 if settings.get('dilation') else 32) != 32
    if dilated:
        return timm_resnet(name, indices)
    # The same network, for which timm is not needed.
    return own_resnet(int(found[1]), indices)
