"""Weights of any origin for one of our models, step by step."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ddetr_plugin.checkpoints.class_rows.move import move_class_rows
from ddetr_plugin.checkpoints.compare import compare
from ddetr_plugin.checkpoints.complete import complete
from ddetr_plugin.checkpoints.files.reading import Source
from ddetr_plugin.checkpoints.normalise import normalise
from ddetr_plugin.checkpoints.record import Conversion, Target

__all__ = ['to_ours']


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
    model = None if target is None else Target.of(target, target_refines)
    conversion = normalise(source, dialect, model)
    conversion = complete(conversion, model)
    conversion = move_class_rows(conversion, source.meta, model, classes, target_classes)
    return compare(conversion, model, allow_missing)
