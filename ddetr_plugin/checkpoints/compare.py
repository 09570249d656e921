"""The last step of a conversion: whether weights are complete, and no more than that.

They are compared with a model, or, where none is at hand, with what their architecture must have.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ddetr_plugin.checkpoints.names.detect import OURS
from ddetr_plugin.checkpoints.names.ours import (
    BACKBONE,
    COUNTER,
    backbone_depth,
    expected_names,
    is_neck_bias,
)
from ddetr_plugin.checkpoints.names.resnets import resnet_names
from ddetr_plugin.checkpoints.names.table import PARTS, Architecture
from ddetr_plugin.checkpoints.record import Conversion, OtherShape, Problems, Target

__all__ = ['compare', 'problems_against', 'problems_alone']

_NORM = re.compile(r'\.gn\.|\.norms\.|_norm\.')


def compare(conversion: Conversion, target: Target | None, allow_missing: bool) -> Conversion:
    """The conversion with its problems, and notes on what they cannot show.

    Args:
        conversion: by our names, with the class rows of the model.
        target: the model that will take the weights; None if there is none.
        allow_missing: report what is left over, missing or of another shape instead of raising.

    Raises:
        ValueError: tensors cannot be what their names say; or there are problems.
    """
    if target is None or conversion.dialect != OURS:
        # A model of ours may have parts of its own, and is compared shape by shape.
        _require_dimensions(conversion.state, conversion.architecture)
    if target is None:
        problems = problems_alone(conversion)
        notes = _on_the_backbone(conversion.state)
    else:
        absent = _absent_parts(conversion, target)
        problems = problems_against(conversion, _without(target, absent))
        notes = [
            f'the weights have no {part.replace("_", " ")}; that of the model stays as it is'
            for part in absent
        ]
    if problems and not allow_missing:
        raise ValueError(_explanation(problems, conversion, alone=target is None))
    return conversion._replace(problems=problems, notes=(*conversion.notes, *notes))


def problems_alone(conversion: Conversion) -> Problems:
    """What is missing and left over in weights that no model is at hand for.

    Their architecture says what there must be; for a ResNet so do its blocks. Other backbones are
    not compared.
    """
    state = conversion.state
    expected = expected_names(conversion.architecture)
    if conversion.dialect == OURS and not any(map(is_neck_bias, state)):
        # A model of ours may be built without (D1); mmdet's have been filled in.
        expected = [name for name in expected if not is_neck_bias(name)]
    found = [name for name in state if not name.endswith(COUNTER)]
    depth = backbone_depth(state)
    if depth is None:
        found = [name for name in found if not name.startswith(BACKBONE)]
    else:
        expected += [BACKBONE + name for name in resnet_names(depth)]
    known = set(expected)
    return replace(
        conversion.problems,
        missing_parts=() if _has_backbone(state) else ('backbone',),
        missing=tuple(name for name in expected if name not in state),
        extra=tuple(name for name in found if name not in known),
    )


def _has_backbone(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(BACKBONE) and not name.endswith(COUNTER) for name in state)


def _on_the_backbone(state: Mapping[str, Tensor]) -> list[str]:
    """A note if the backbone is one that `problems_alone` does not compare."""
    if not _has_backbone(state) or backbone_depth(state) is not None:
        return []
    return [
        'the backbone is none of the ResNets whose names are known here, so whether it is '
        'complete was not checked; --config compares it with a model'
    ]


def problems_against(conversion: Conversion, target: Target) -> Problems:
    """What is missing, left over or of another shape in weights for a model."""
    state = conversion.state
    return replace(
        conversion.problems,
        architecture=_other_architecture(conversion.architecture, target),
        missing=tuple(
            name for name in target.state if name not in state and not name.endswith(COUNTER)
        ),
        shapes=tuple(
            OtherShape(name, tuple(state[name].shape), tuple(tensor.shape))
            for name, tensor in target.state.items()
            if name in state and state[name].shape != tensor.shape
        ),
        extra=tuple(
            name for name in state if name not in target.state and not name.endswith(COUNTER)
        ),
    )


def _other_architecture(weights: Architecture, target: Target) -> tuple[str, ...]:
    model = target.architecture
    if not (target.says_refines or weights.share_branches or model.share_branches):
        # Names of heads for each layer do not tell.
        model = model._replace(refines=weights.refines)
    if weights.variant != model.variant:
        return (f'variant: the weights are {weights.variant}, the model is {model.variant}',)
    if weights.share_branches != model.share_branches:
        kinds = ('one head for each decoder layer', 'one head for all decoder layers')
        return (
            f'heads: the weights have {kinds[weights.share_branches]}, the model has '
            f'{kinds[model.share_branches]}; build it with '
            f'bbox_head.share_branches={weights.share_branches}',
        )
    return ()


def _absent_parts(conversion: Conversion, target: Target) -> list[str]:
    """Parts of a model for further tasks, such as a mask head, of which the weights have nothing.

    A tensor without a counterpart here is of such a part, too, if it has its name.
    """
    names = (*conversion.state, *conversion.problems.unknown)
    present = {name.partition('.')[0] for name in names}
    return sorted({name.partition('.')[0] for name in target.state} - {*PARTS} - present)


def _without(target: Target, parts: list[str]) -> Target:
    state = {k: v for k, v in target.state.items() if k.partition('.')[0] not in parts}
    return target._replace(state=state)


def _require_dimensions(state: Mapping[str, Tensor], architecture: Architecture) -> None:
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
        if name in state and state[name].dim() != dims:
            damaged.append(f'{name} is {tuple(state[name].shape)}, expected {dims} dimensions')
    if damaged:
        lines = '\n  '.join(damaged)
        raise ValueError(f'the file is damaged, get it again:\n  {lines}')


def _explanation(problems: Problems, conversion: Conversion, alone: bool) -> str:
    """The error message that lists the problems; `alone`: there was no model to compare with."""
    cure = (
        'If they are of a model with other parts, name its config with --config, which compares '
        'them with that; or --allow-missing to go on without these'
        if alone
        else 'Give the config of the same variant and size, or --allow-missing to go on without '
        'these'
    )
    lines, weights = problems.lines(), conversion.architecture
    listed = '\n  '.join(lines)
    return (
        f'the weights ({conversion.dialect}, {weights.variant}: {weights.encoder_layers} encoder '
        f'and {weights.decoder_layers} decoder layers, {weights.levels} levels) do not fit; '
        f'{len(lines)} problem{"s" if len(lines) > 1 else ""}:\n  {listed}\n{cure}'
    )
