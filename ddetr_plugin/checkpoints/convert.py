"""Weights of any origin for one of our models: what fits, what is filled in, what is an error."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddetr_plugin.checkpoints.class_rows.plan import map_classes
from ddetr_plugin.checkpoints.files.reading import Source
from ddetr_plugin.checkpoints.files.stated_settings import file_settings
from ddetr_plugin.checkpoints.fit import (
    explain,
    misfits,
    misfits_alone,
    require_dimensions,
    require_plain_numbers,
)
from ddetr_plugin.checkpoints.names.detect import OURS, detect_architecture, detect_dialect
from ddetr_plugin.checkpoints.names.rename import import_state, is_neck_bias
from ddetr_plugin.checkpoints.names.table import DIALECTS, PARTS, Architecture, with_common_names

__all__ = ['Conversion', 'checksum', 'to_ours']

# Detectors gain it afterwards, and no other implementation has it.


class Conversion(NamedTuple):
    """Weights in our names, and how they came about.

    Attributes:
        state: by our names.
        dialect: what they were written by.
        architecture: their architecture.
        classes: name of each class row, or None where nobody says.
        notes: what was done besides renaming, a sentence each.
        problems: what does not fit; only with `allow_missing`.
        dropped: by our names, the class rows that have no place: (rows, ...), in order.
        rows: for each class row the row that it was, or None if it is fresh; None if none moved.
        source_rows: how many class rows there were; None if there is no class head.
        warnings: what may be wrong, a sentence each.
    """

    state: dict[str, Tensor]
    dialect: str
    architecture: Architecture
    classes: tuple[str | None, ...] | None
    notes: list[str]
    problems: list[str]
    dropped: dict[str, Tensor]
    rows: tuple[int | None, ...] | None = None
    source_rows: int | None = None
    warnings: Sequence[str] = ()


def to_ours(
    source: Source,
    dialect: str = 'auto',
    target: Mapping[str, Tensor] | None = None,
    classes: Sequence[str] | str | None = None,
    target_classes: Sequence[str] | None = None,
    allow_missing: bool = False,
    target_refines: bool | None = None,
) -> Conversion:
    """Weights of any dialect as ours.

    Args:
        source: the file.
        dialect: 'auto', 'ddetr_plugin' or one of `DIALECTS`.
        target: state dict of the model that will take them, of which only names and shapes are
            read; None if there is none to compare with.
        classes: names of the wanted classes, which move rows by name; 'keep' leaves the rows as
            they are; None does what `target` and `target_classes` ask for, and without them turns
            the official 91 rows into COCO's 80.
        target_classes: what the rows of `target` are, if known.
        allow_missing: report what is left over or missing instead of raising.
        target_refines: whether the decoder of the model that will take them refines boxes, which
            its state dict does not tell for certain; None if it is not known.

    Raises:
        ValueError: the dialect is unknown; a tensor is of no usable kind; keys are left over or
            missing, or shapes do not fit; classes cannot be mapped.
    """
    if dialect == 'auto':
        dialect = detect_dialect(source.state)
        if dialect is None:
            raise ValueError(
                'the weights are of no Deformable DETR that is known here, none of '
                f'{", ".join((OURS, *DIALECTS))}; the names begin with '
                f'{", ".join(list(source.state)[:5])}. Name the origin with --from if it is one'
            )
    require_plain_numbers(source.state)
    state = with_common_names(source.state, dialect)
    architecture = detect_architecture(state, dialect)
    wanted = detect_architecture(target, OURS) if target is not None else None
    if wanted is not None and target_refines is not None:
        wanted = wanted._replace(refines=target_refines)
    notes: list[str] = []
    if target is not None:
        present = {name.partition('.')[0] for name in state}
        absent = {name.partition('.')[0] for name in target} - {*PARTS} - present
        for part in sorted(absent):
            words = part.replace('_', ' ')
            notes.append(f'the weights have no {words}; that of the model stays as it is')
        target = {k: v for k, v in target.items() if k.partition('.')[0] not in absent}
    warnings: list[str] = []
    architecture = _with_stated_heads(architecture, wanted, state, source, dialect, warnings)
    if not architecture.share_branches and not architecture.refines:
        notes.append(
            'every decoder layer has a head of its own, though none refines the boxes of another '
            '(transformers with tie_word_embeddings=False); such a model of ours has '
            'bbox_head.share_branches=False and decoder.refine=False'
        )
        if wanted is not None and target_refines is None and not wanted.share_branches:
            wanted = wanted._replace(refines=False)

    left: list[str] = []
    if dialect == OURS:
        ours = dict(state)
    else:
        ours, left = import_state(state, dialect, architecture)
        if dialect == 'mmdet':
            filled = _fill_neck_bias(ours, target)
            if filled:
                notes.append(f'{filled} biases of the neck, which mmdet leaves out, are zero (D1)')
        if dialect == 'transformers':
            _untie_class_heads(ours, architecture, notes)
    if target is None or dialect != OURS:
        # A model of ours may have parts of its own, and is compared shape by shape.
        require_dimensions(ours, architecture)
    problems = [f'left over: {name}' for name in left]
    if target is None:
        problems += misfits_alone(ours, dialect, architecture, notes)
        if problems and not allow_missing:
            raise ValueError(explain(problems, dialect, architecture, alone=True))

    names, rows, dropped, source_rows = map_classes(
        ours, source.meta, target, classes, target_classes, notes, warnings
    )
    if target is not None:
        problems += misfits(ours, target, architecture, wanted)
        if problems and not allow_missing:
            raise ValueError(explain(problems, dialect, architecture, alone=False))
    return Conversion(
        ours, dialect, architecture, names, notes, problems, dropped, rows, source_rows, warnings
    )


def _with_stated_heads(
    architecture: Architecture,
    wanted: Architecture | None,
    state: Mapping[str, Tensor],
    source: Source,
    dialect: str,
    warnings: list[str],
) -> Architecture:
    """`architecture` with what the file says of its heads, which count more than their numbers.

    Where the file says nothing and all heads are equal, the model decides, with a warning.
    """
    refines = file_settings(source.meta, dialect).get('with_box_refine')
    if refines is None:
        refines = (source.meta.get('conversion') or {}).get('refines')
    model = None if wanted is None or wanted.share_branches else wanted.refines
    if not architecture.share_branches:
        # Our names alone do not tell.
        if refines is None and dialect == OURS:
            refines = model
        return architecture if refines is None else architecture._replace(refines=bool(refines))
    if (
        dialect not in ('mmdet', 'transformers')
        or refines is False
        or (refines is None and model is None)
    ):
        return architecture
    own = architecture._replace(share_branches=False, refines=bool(refines or model))
    if not _has_all_heads(state, dialect, own):
        return architecture
    if refines is None and model:
        warnings.append(
            'the heads of all layers are equal, as in a model that is untrained or does not '
            'refine boxes, and the file does not say which; the model at hand refines them, and '
            'detects wrongly if the other did not'
        )
    return own


def _has_all_heads(state: Mapping[str, Tensor], dialect: str, architecture: Architecture) -> bool:
    ours, _ = import_state(state, dialect, architecture)
    return all(
        f'bbox_head.cls_branches.{j}.weight' in ours for j in range(architecture.decoder_layers)
    )


def _untie_class_heads(
    ours: dict[str, Tensor], architecture: Architecture, notes: list[str]
) -> None:
    """Repeats the class head that transformers saved once for all layers.

    It ties class heads that are equal, also those of a model that refines boxes. A file in which a
    part of them is there was not tied, but is damaged.
    """
    if architecture.share_branches:
        return
    heads = [
        [f'bbox_head.cls_branches.{j}.{part}' for part in ('weight', 'bias')]
        for j in range(architecture.decoder_layers)
    ]
    first, *others = heads
    if all(name in ours for name in first) and not any(name in ours for h in others for name in h):
        for head in others:
            for name, source in zip(head, first):
                ours[name] = ours[source].clone()
        notes.append(f'the class heads of {len(others)} layers are that of layer 0 (tied)')


def _fill_neck_bias(ours: dict[str, Tensor], target: Mapping[str, Tensor] | None) -> int:
    """Adds zero biases where mmdet has none and the target, if there is one, wants them.

    A neck that has some has all of them, or the file is damaged.
    """
    if any(map(is_neck_bias, ours)):
        return 0
    filled = 0
    for name in [n for n in ours if re.fullmatch(r'neck\.(extra_)?convs\.\d+\.conv\.weight', n)]:
        bias = name.removesuffix('weight') + 'bias'
        if bias not in ours and (target is None or bias in target):
            ours[bias] = ours[name].new_zeros(len(ours[name]))
            filled += 1
    return filled


def checksum(state: Mapping[str, Tensor]) -> str:
    """sha256, 16 hexadecimal digits, over names, dtypes, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f'{name}|{tensor.dtype}|{tuple(tensor.shape)}|'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
