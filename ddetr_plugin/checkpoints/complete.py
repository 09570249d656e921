"""The second step of a conversion: what a dialect leaves out of its files, and ours has."""

from ddetr_plugin.checkpoints.names.ours import is_neck_bias, neck_bias_beside
from ddetr_plugin.checkpoints.record import Conversion, Target

__all__ = ['complete']


def complete(conversion: Conversion, target: Target | None) -> Conversion:
    """The weights with mmdet's neck biases and transformers' tied class heads.

    Args:
        conversion: by our names.
        target: the model that will take them, which may have no neck biases either; None if there
            is none.
    """
    if conversion.dialect == 'mmdet':
        return _with_neck_biases(conversion, target)
    if conversion.dialect == 'transformers':
        return _with_untied_class_heads(conversion)
    return conversion


def _with_neck_biases(conversion: Conversion, target: Target | None) -> Conversion:
    """Zero biases where mmdet has none and the target, if there is one, wants them.

    A neck that has some has all of them, or the file is damaged.
    """
    state = conversion.state
    if any(map(is_neck_bias, state)):
        return conversion
    zeros = {}
    for name, weight in state.items():
        bias = neck_bias_beside(name)
        if bias is not None and (target is None or bias in target.state):
            # Of a damaged weight, which is yet to be compared, there may be no dimension.
            zeros[bias] = weight.new_zeros(weight.shape[:1])
    if not zeros:
        return conversion
    note = f'{len(zeros)} biases of the neck, which mmdet leaves out, are zero (D1)'
    return conversion._replace(state={**state, **zeros}, notes=(*conversion.notes, note))


def _with_untied_class_heads(conversion: Conversion) -> Conversion:
    """Repeats the class head that transformers saved once for all layers.

    It ties class heads that are equal, also those of a model that refines boxes. A file in which a
    part of them is there was not tied, but is damaged.
    """
    if conversion.architecture.share_branches:
        return conversion
    state = conversion.state
    first, *others = (
        [f'bbox_head.cls_branches.{j}.{part}' for part in ('weight', 'bias')]
        for j in range(conversion.architecture.decoder_layers)
    )
    if not all(name in state for name in first) or any(n in state for head in others for n in head):
        return conversion
    repeated = {name: state[tied].clone() for head in others for name, tied in zip(head, first)}
    note = f'the class heads of {len(others)} layers are that of layer 0 (tied)'
    return conversion._replace(state={**state, **repeated}, notes=(*conversion.notes, note))
