"""Kinds of our own parameters, by name, and which of them a model must have."""

import re
from collections.abc import Iterable

from ddetr_plugin.checkpoints.names.resnets import resnet_depth
from ddetr_plugin.checkpoints.names.table import Architecture, module_names

__all__ = [
    'BACKBONE',
    'COUNTER',
    'backbone_depth',
    'expected_names',
    'is_neck_bias',
    'neck_bias_beside',
]

BACKBONE = 'backbone.'
COUNTER = 'num_batches_tracked'
_NECK_BIAS = re.compile(r'neck\.(extra_)?convs\.\d+\.conv\.bias')


def is_neck_bias(name: str) -> bool:
    """Whether a parameter is a bias before a norm in the neck (D1)."""
    return _NECK_BIAS.fullmatch(name) is not None


def neck_bias_beside(name: str) -> str | None:
    """The bias (D1) that belongs to a weight of the neck; None if `name` is another parameter."""
    bias = name.removesuffix('weight') + 'bias'
    return bias if is_neck_bias(bias) else None


def backbone_depth(names: Iterable[str]) -> int | None:
    """The depth of the ResNet among the parameters of a model; None if its backbone is another."""
    return resnet_depth(n.removeprefix(BACKBONE) for n in names if n.startswith(BACKBONE))


def expected_names(architecture: Architecture) -> list[str]:
    """The parameters of an architecture, the backbone's excepted."""
    names = []
    for module in module_names('mmdet', architecture).theirs:
        if module.endswith('level_embed'):
            names.append(module)
        elif module.endswith('self_attn.attn'):
            names += [f'{module}.in_proj_weight', f'{module}.in_proj_bias']
            names += [f'{module}.out_proj.weight', f'{module}.out_proj.bias']
        else:
            names.append(f'{module}.weight')
            if not module.endswith('query_embedding'):
                names.append(f'{module}.bias')
    return names
