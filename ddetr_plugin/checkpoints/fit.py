"""Whether weights by our names are complete, and no more than that: alone, or for a model."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ddetr_plugin.checkpoints.names.detect import OURS
from ddetr_plugin.checkpoints.names.rename import COUNTER, expected_names, is_neck_bias
from ddetr_plugin.checkpoints.names.resnets import resnet_depth, resnet_names
from ddetr_plugin.checkpoints.names.table import Architecture

__all__ = [
    'backbone_depth',
    'explain',
    'misfits',
    'misfits_alone',
    'require_dimensions',
    'require_plain_numbers',
]

_BACKBONE = 'backbone.'
# Of a module; other backbones also have tables of integers.
_PARAMETER = re.compile(r'(weight|bias|running_mean|running_var|level_embeds?)$')
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NORM = re.compile(r'\.gn\.|\.norms\.|_norm\.')


def backbone_depth(ours: Mapping[str, Tensor]) -> int | None:
    """The depth of the ResNet in a state dict by our names; None if it has another backbone."""
    return resnet_depth(n.removeprefix(_BACKBONE) for n in ours if n.startswith(_BACKBONE))


def misfits_alone(
    ours: Mapping[str, Tensor], dialect: str, architecture: Architecture, notes: list[str]
) -> list[str]:
    """What is missing and left over in weights that no model is at hand for.

    Args:
        ours: by our names.
        dialect: what they were written by.
        architecture: says what there must be; for a ResNet so do its blocks.
        notes: gets a sentence if the backbone is another one, and cannot be checked.

    Returns:
        'missing: NAME' and 'left over: NAME' for each.
    """
    expected = expected_names(architecture)
    if dialect == OURS and not any(is_neck_bias(name) for name in ours):
        # A model of ours may be built without (D1); mmdet's have been filled in.
        expected = [name for name in expected if not is_neck_bias(name)]
    found = [name for name in ours if not name.endswith(COUNTER)]
    depth = backbone_depth(ours)
    problems = []
    if not any(name.startswith(_BACKBONE) for name in found):
        problems.append('missing: every tensor of the backbone')
    elif depth is None:
        found = [name for name in found if not name.startswith(_BACKBONE)]
        notes.append(
            'the backbone is none of the ResNets whose names are known here, so whether it is '
            'complete was not checked; --config compares it with a model'
        )
    else:
        expected += [_BACKBONE + name for name in resnet_names(depth)]
    problems += [f'missing: {name}' for name in expected if name not in ours]
    known = set(expected)
    return problems + [f'left over: {name}' for name in found if name not in known]


def require_dimensions(ours: Mapping[str, Tensor], architecture: Architecture) -> None:
    """Refuse tensors that cannot be what their names say, whatever the sizes of the model.

    Raises:
        ValueError: their number of dimensions is another; all of them are listed.
    """
    damaged = []
    for name in expected_names(architecture):
        if name.endswith('bias') or (name.endswith('weight') and _NORM.search(name)):
            dims = 1
        else:
            dims = 4 if name.endswith('conv.weight') else 2
        if name in ours and ours[name].dim() != dims:
            damaged.append(f'{name} is {tuple(ours[name].shape)}, expected {dims} dimensions')
    if damaged:
        lines = '\n  '.join(damaged)
        raise ValueError(f'the file is damaged, get it again:\n  {lines}')


def require_plain_numbers(state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that a model cannot take as they are.

    Args:
        state: by the names of any dialect.

    Raises:
        ValueError: some are sparse, quantised, complex or, unlike others, without data, or are
            parameters of another type than floats of 16, 32 or 64 bits; all of them are listed.
    """
    # Where no tensor has data, names and shapes are all that is asked for.
    shapes_alone = all(tensor.is_meta for tensor in state.values())
    unusable = []
    for name, tensor in state.items():
        kind = ''
        if tensor.is_meta and not shapes_alone:
            kind = 'without data'
        elif tensor.layout != torch.strided:
            kind = 'sparse'
        elif tensor.dtype not in _FLOATS:
            strange = tensor.is_quantized or tensor.is_complex() or _PARAMETER.search(str(name))
            kind = str(tensor.dtype) if strange else ''
        if kind:
            unusable.append(f'{name} is {kind}')
    if unusable:
        lines = '\n  '.join(unusable)
        raise ValueError(
            'expected dense floats of 16, 32 or 64 bits; save the weights so where they come from:'
            f'\n  {lines}'
        )


def misfits(
    ours: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    architecture: Architecture,
    wanted: Architecture | None,
) -> list[str]:
    """What is missing, left over or of another shape in weights for a model.

    Args:
        ours: by our names.
        target: the model's state dict.
        architecture: of `ours`.
        wanted: of `target`.
    """
    problems = []
    if wanted is not None and architecture.variant != wanted.variant:
        problems.append(
            f'variant: the weights are {architecture.variant}, the model is {wanted.variant}'
        )
    elif wanted is not None and architecture.share_branches != wanted.share_branches:
        kinds = ('one head for each decoder layer', 'one head for all decoder layers')
        problems.append(
            f'heads: the weights have {kinds[architecture.share_branches]}, the model has '
            f'{kinds[wanted.share_branches]}; build it with '
            f'bbox_head.share_branches={architecture.share_branches}'
        )
    for name, tensor in target.items():
        if name not in ours:
            if not name.endswith(COUNTER):
                problems.append(f'missing: {name}')
        elif ours[name].shape != tensor.shape:
            problems.append(
                f'shape: {name} is {tuple(ours[name].shape)}, the model has {tuple(tensor.shape)}'
            )
    problems += [f'left over: {n}' for n in ours if n not in target and not n.endswith(COUNTER)]
    return problems


def explain(problems: Sequence[str], dialect: str, architecture: Architecture, alone: bool) -> str:
    """The error message that lists the problems.

    Args:
        problems: what does not fit.
        dialect: what the weights were written by.
        architecture: their architecture.
        alone: there was no model to compare with.
    """
    cure = (
        'If they are of a model with other parts, name its config with --config, which compares '
        'them with that; or --allow-missing to go on without these'
        if alone
        else 'Give the config of the same variant and size, or --allow-missing to go on without '
        'these'
    )
    lines = '\n  '.join(problems)
    return (
        f'the weights ({dialect}, {architecture.variant}: {architecture.encoder_layers} encoder '
        f'and {architecture.decoder_layers} decoder layers, {architecture.levels} levels) do not '
        f'fit; {len(problems)} problem{"s" if len(problems) > 1 else ""}:\n  {lines}\n{cure}'
    )
