"""What a conversion did, in words."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from ddetr_plugin.checkpoints.files.reading import Source
from ddetr_plugin.checkpoints.files.stated_settings import setting_mismatches, unusual_settings
from ddetr_plugin.checkpoints.names.detect import OURS
from ddetr_plugin.checkpoints.names.ours import backbone_depth
from ddetr_plugin.checkpoints.record import Conversion
from ddetr_plugin.checkpoints.same_bits import checksum

__all__ = ['describe', 'dilation_mismatch', 'settings_mismatch', 'settings_to_match']


def _sizes(state: Mapping[str, Tensor]) -> str:
    """Width, queries and classes, as far as the weights show them."""
    parts = [f'{state["encoder.level_embed"].shape[1]} channels']
    if 'query_head.query_embedding.weight' in state:
        parts.append(f'{len(state["query_head.query_embedding.weight"])} queries')
    if 'bbox_head.cls_branches.0.bias' in state:
        parts.append(f'{len(state["bbox_head.cls_branches.0.bias"])} class rows')
    return ', '.join(parts)


def _parts(state: Mapping[str, Tensor]) -> list[str]:
    """A line for each part of the model: tensors, numbers, and the largest tensor's shape."""
    parts: dict[str, list[str]] = {}
    for name in state:
        parts.setdefault(name.split('.')[0], []).append(name)
    lines = []
    for part, names in parts.items():
        largest = max(names, key=lambda name: state[name].numel())
        numbers = sum(state[name].numel() for name in names)
        lines.append(
            f'  {part}: {len(names)} tensors, {numbers:,} numbers, largest '
            f'{largest.removeprefix(part + ".")} {tuple(state[largest].shape)}'
        )
    return lines


def dilation_mismatch(source: Source, dialect: str, backbone: nn.Module) -> list[str]:
    """A line if the file is of a backbone that is dilated otherwise than the model's (DC5, D4).

    Weights do not show it: they load, and detections are worse.

    Args:
        source: the file, which need not say it.
        dialect: what wrote it.
        backbone: the model's.
    """
    dilated = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d) and module.dilation != (1, 1)
    ]
    if source.dilated is None or not (dilated or source.dilated):
        return []
    if bool(dilated) != source.dilated:
        words = {True: 'a dilated', False: 'an undilated'}
        return [
            f'warning: the file is of {words[source.dilated]} backbone (DC5), the config has '
            f'{words[not source.dilated]} one; detections will be worse'
        ]
    first = any(re.match(r'layer\d\.0\.', name) for name in dilated)
    if dialect == OURS or first == (dialect == 'mmdet'):
        return []
    kind = "'ResNet'" if dialect == 'mmdet' else "'ddetr_plugin.DilatedResNet'"
    return [
        f'warning: {dialect} and the config dilate the first block of a stage differently (D4); '
        f'build the backbone with type={kind}'
    ]


def settings_mismatch(source: Source, dialect: str, model: nn.Module) -> list[str]:
    """A line if the file is of a model with other heads, points or the like, than ours.

    Args:
        source: the file, which need not say it.
        dialect: what wrote it.
        model: ours.
    """
    others = setting_mismatches(source.meta, dialect, model)
    if not others:
        return []
    return [
        f'warning: the file is of a model with {"; ".join(others)} as in the config; the weights '
        'fit, but detections will be wrong'
    ]


def settings_to_match(source: Source, dialect: str) -> list[str]:
    """A line if the file is of a model with other heads, activations or the like, than usual.

    For where there is no model to compare it with.

    Args:
        source: the file, which need not say it.
        dialect: what wrote it.
    """
    others = unusual_settings(source.meta, dialect)
    if not others:
        return []
    return [
        f'note: the file is of a model with {"; ".join(others)} as in the configs here; weights do '
        'not show it, so give the model that takes them the same (--config compares)'
    ]


def _not_finite(state: Mapping[str, Tensor]) -> list[str]:
    names = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if not names:
        return []
    some = ', '.join(names[:4]) + (', ...' if len(names) > 4 else '')
    return [f'warning: {len(names)} tensors hold numbers that are not finite: {some}']


def describe(conversion: Conversion, source: Source) -> list[str]:
    """Lines: origin, variant, tensors, shapes, checksum, and all that is not a renaming."""
    architecture, state = conversion.architecture, conversion.state
    dilation = {
        None: 'the file does not say whether the backbone is dilated (DC5)',
        True: 'dilated backbone (DC5)',
        False: 'backbone not dilated',
    }[source.dilated]
    depth = backbone_depth(state)
    backbone = 'another backbone than a ResNet' if depth is None else f'ResNet-{depth}'
    numbers = sum(tensor.numel() for tensor in state.values())
    lines = [
        f'written by: {conversion.dialect}',
        f'variant: {architecture.variant}; {dilation}',
        f'layers: {architecture.encoder_layers} encoder, {architecture.decoder_layers} decoder; '
        f'levels: {architecture.levels}, {architecture.inputs} from the backbone ({backbone}); '
        f'{_sizes(state)}',
        f'tensors: {len(state)} from {len(source.state)}, {numbers:,} numbers, checksum '
        f'{checksum(state)}',
    ]
    lines += _parts(state)
    lines += [f'note: {note}' for note in (*source.notes, *conversion.notes)]
    lines += [f'warning: {warning}' for warning in conversion.warnings]
    lines += _not_finite(state)
    if source.not_converted:
        lines.append(f'not converted: {", ".join(source.not_converted)}')
    lines += [f'ignored: {problem}' for problem in conversion.problems.lines()]
    return lines
