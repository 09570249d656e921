"""What a conversion did, in words."""

from collections.abc import Mapping

from torch import Tensor

from ddetr_plugin.checkpoints.convert import Conversion, checksum
from ddetr_plugin.checkpoints.files import Source
from ddetr_plugin.checkpoints.fit import backbone_depth

__all__ = ['describe']


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


def describe(conversion: Conversion, source: Source) -> list[str]:
    """Lines: origin, variant, tensors, shapes, checksum, and all that is not a renaming."""
    layout, state = conversion.layout, conversion.state
    dilation = {
        None: 'the file does not say whether the backbone is dilated (DC5)',
        True: 'dilated backbone (DC5)',
        False: 'backbone not dilated',
    }[source.dilated if source.dilated is not None else source.meta.get('dilation')]
    depth = backbone_depth(state)
    backbone = 'another backbone than a ResNet' if depth is None else f'ResNet-{depth}'
    numbers = sum(tensor.numel() for tensor in state.values())
    lines = [
        f'written by: {conversion.dialect}',
        f'variant: {layout.variant}; {dilation}',
        f'layers: {layout.encoder_layers} encoder, {layout.decoder_layers} decoder; levels: '
        f'{layout.levels}, {layout.inputs} from the backbone ({backbone}); {_sizes(state)}',
        f'tensors: {len(state)} from {len(source.state)}, {numbers:,} numbers, checksum '
        f'{checksum(state)}',
    ]
    lines += _parts(state)
    lines += [f'note: {note}' for note in conversion.notes]
    if source.left:
        lines.append(f'not converted: {", ".join(source.left)}')
    lines += [f'ignored: {problem}' for problem in conversion.problems]
    return lines
