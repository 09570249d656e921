"""The first step of a conversion: weights of any dialect get our names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ddetr_plugin.checkpoints.files.reading import Source
from ddetr_plugin.checkpoints.files.stated_settings import file_settings
from ddetr_plugin.checkpoints.names.detect import OURS, detect_architecture, detect_dialect
from ddetr_plugin.checkpoints.names.rename import import_state
from ddetr_plugin.checkpoints.names.table import (
    DIALECTS,
    Architecture,
    module_names,
    with_common_names,
)
from ddetr_plugin.checkpoints.record import Conversion, Problems, Target

__all__ = ['normalise']

# Of a module; other backbones also have tables of integers.
_PARAMETER = re.compile(r'(weight|bias|running_mean|running_var|level_embeds?)$')
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def normalise(source: Source, dialect: str, target: Target | None) -> Conversion:
    """The weights of a file by our names; what has none is among the problems as `unknown`.

    Args:
        source: the file.
        dialect: 'auto', 'ddetr_plugin' or one of `DIALECTS`.
        target: the model that will take the weights; says whether it refines boxes where the file
            does not; None if there is none.

    Raises:
        ValueError: the dialect is unknown, or wrong; a tensor is of no usable kind; or two names of
            one tensor hold different numbers.
    """
    dialect = _known_dialect(source.state, dialect)
    _require_plain_numbers(source.state)
    state = with_common_names(source.state, dialect)
    architecture = detect_architecture(state, dialect)
    architecture, warnings = _with_stated_heads(architecture, state, source.meta, dialect, target)
    notes = []
    if not architecture.share_branches and not architecture.refines:
        notes.append(
            'every decoder layer has a head of its own, though none refines the boxes of another '
            '(transformers with tie_word_embeddings=False); such a model of ours has '
            'bbox_head.share_branches=False and decoder.refine=False'
        )
    unknown: list[str] = []
    if dialect != OURS:
        state, unknown = import_state(state, dialect, architecture)
    return Conversion(
        state=state,
        dialect=dialect,
        architecture=architecture,
        problems=Problems(unknown=tuple(unknown)),
        notes=tuple(notes),
        warnings=tuple(warnings),
        dropped={},
    )


def _known_dialect(state: Mapping[str, Tensor], dialect: str) -> str:
    """`dialect`, or the one that the names are of.

    Raises:
        ValueError: there is no such dialect, or none of them has such names.
    """
    known = ', '.join((OURS, *DIALECTS))
    if dialect == 'auto':
        found = detect_dialect(state)
        if found is None:
            raise ValueError(
                'the weights are of no Deformable DETR that is known here, none of '
                f'{known}; the names begin with {", ".join(list(state)[:5])}. Name the origin with '
                '--from if it is one'
            )
        return found
    if dialect not in (OURS, *DIALECTS):
        raise ValueError(f'nothing here writes weights as {dialect!r}, expected one of {known}')
    return dialect


def _require_plain_numbers(state: Mapping[str, Tensor]) -> None:
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


def _with_stated_heads(
    architecture: Architecture,
    state: Mapping[str, Tensor],
    meta: Mapping,
    dialect: str,
    target: Target | None,
) -> tuple[Architecture, list[str]]:
    """`architecture` with what the file says of its heads, which count more than their numbers.

    Where the file says nothing and all heads are equal, the model decides, with a warning.
    """
    refines = file_settings(meta, dialect).get('with_box_refine')
    if refines is None:
        refines = (meta.get('conversion') or {}).get('refines')
    model = None
    if target is not None and not target.architecture.share_branches:
        model = target.architecture.refines
    if not architecture.share_branches:
        # Our names alone do not tell.
        if refines is None and dialect == OURS:
            refines = model
        if refines is not None:
            architecture = architecture._replace(refines=bool(refines))
        return architecture, []
    if dialect not in ('mmdet', 'transformers'):
        return architecture, []
    if refines is False or (refines is None and model is None):
        return architecture, []
    own = architecture._replace(share_branches=False, refines=bool(refines or model))
    if not _has_all_heads(state, dialect, own):
        return architecture, []
    if refines is None and model:
        return own, [
            'the heads of all layers are equal, as in a model that is untrained or does not '
            'refine boxes, and the file does not say which; the model at hand refines them, and '
            'detects wrongly if the other did not'
        ]
    return own, []


def _has_all_heads(state: Mapping[str, Tensor], dialect: str, architecture: Architecture) -> bool:
    """Whether every decoder layer has a class head, under whichever of its names."""
    names = module_names(dialect, architecture).ours()
    found = {ours for theirs, ours in names.items() if f'{theirs}.weight' in state}
    return all(f'bbox_head.cls_branches.{j}' in found for j in range(architecture.decoder_layers))
