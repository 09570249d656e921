"""Whether the source's own library computes what our model computes with the converted weights."""

import copy
import logging
from collections.abc import Mapping

import torch
from torch import nn

from ddetr_plugin.checkpoints.convert import Conversion
from ddetr_plugin.checkpoints.files import Source
from ddetr_plugin.checkpoints.libraries import (
    largest_difference,
    mmdet_model,
    transformers_model,
    with_rows,
)
from ddetr_plugin.checkpoints.names import with_common_names

__all__ = ['build_ours', 'verify']


def build_ours(config: Mapping, device: str = 'cpu') -> nn.Module:
    """Our model of a config, without loading what its backbone is usually initialised from.

    On 'meta' it has names and shapes, but takes no memory, unless a part cannot be built there.
    """
    from mmengine.registry import DefaultScope

    from ddetr_plugin.registry import MODELS

    logging.disable(logging.INFO)
    try:
        with DefaultScope.overwrite_default_scope('mmdet'):
            try:
                with torch.device(device):
                    return MODELS.build(copy.deepcopy(config))
            except RuntimeError:
                # mmdet's EfficientNet reads numbers from tensors while it is built.
                if device != 'meta':
                    raise
                return MODELS.build(copy.deepcopy(config))
    finally:
        logging.disable(logging.NOTSET)


def verify(config: Mapping, source: Source, conversion: Conversion) -> tuple[float, float] | None:
    """Largest absolute differences of logits and boxes on random pictures; None without a library.

    Classes that start fresh are not compared.

    Args:
        config: our model's config, with the class rows of `conversion`.
        source: the file.
        conversion: its weights as ours.

    Raises:
        ImportError: the source's library is not installed.
        ValueError: the library has no model for this config.
    """
    if conversion.dialect not in ('mmdet', 'hf'):
        return None
    state = with_common_names(source.state, conversion.dialect)
    heads = 'bbox_head.cls_branches' if conversion.dialect == 'mmdet' else 'class_embed'
    # transformers may save a head under the name that the decoder has for it, and only there.
    bias = next(t for name, t in state.items() if name.endswith(f'{heads}.0.bias'))
    theirs = with_rows(config, len(bias))
    if conversion.dialect == 'mmdet':
        theirs['neck']['bias'] = 'neck.convs.0.conv.bias' in state
        from mmengine.registry import DefaultScope

        with DefaultScope.overwrite_default_scope('mmdet'):
            other = mmdet_model(theirs)
        other.load_state_dict(state)
    else:
        other = transformers_model(theirs, state)
    ours = build_ours(config)
    ours.load_state_dict(conversion.state)
    return largest_difference(ours, other, conversion.rows)
