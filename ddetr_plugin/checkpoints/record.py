"""What the steps of a conversion hand on: weights by our names, and how they came about."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ddetr_plugin.checkpoints.names.detect import OURS, detect_architecture
from ddetr_plugin.checkpoints.names.table import Architecture

__all__ = ['Conversion', 'OtherShape', 'Problems', 'Target']


class OtherShape(NamedTuple):
    """A tensor that the model has in another shape.

    Attributes:
        name: ours.
        weights: the shape in the weights.
        model: the shape in the model.
    """

    name: str
    weights: tuple[int, ...]
    model: tuple[int, ...]


@dataclass(frozen=True)
class Problems:
    """What does not fit in weights. It is false where there is nothing.

    Attributes:
        unknown: by the names of the dialect, tensors that have no counterpart here.
        architecture: what the weights are and the model is not, a sentence each.
        missing_parts: parts without a single tensor: 'backbone'.
        missing: by our names, tensors that are not there.
        shapes: tensors of another shape than the model's.
        extra: by our names, tensors that have no place in the model.
    """

    unknown: tuple[str, ...] = ()
    architecture: tuple[str, ...] = ()
    missing_parts: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    shapes: tuple[OtherShape, ...] = ()
    extra: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lines())

    def lines(self) -> list[str]:
        """A line for each of them."""
        return [
            *(f'left over: {name}' for name in self.unknown),
            *self.architecture,
            *(f'missing: every tensor of the {part}' for part in self.missing_parts),
            *(f'missing: {name}' for name in self.missing),
            *(f'shape: {s.name} is {s.weights}, the model has {s.model}' for s in self.shapes),
            *(f'left over: {name}' for name in self.extra),
        ]


class Target(NamedTuple):
    """The model that will take the weights.

    Attributes:
        state: its state dict, of which only names and shapes are read.
        architecture: what it is; whether it refines boxes is certain only if `says_refines`.
        says_refines: whether the model itself said if it refines boxes, not its names.
    """

    state: Mapping[str, Tensor]
    architecture: Architecture
    says_refines: bool

    @classmethod
    def of(cls, state: Mapping[str, Tensor], refines: bool | None) -> 'Target':
        """The model of a state dict.

        Args:
            state: by our names.
            refines: whether its decoder refines boxes; None if that is not known.

        Raises:
            ValueError: it is no Deformable DETR of ours.
        """
        architecture = detect_architecture(state, OURS)
        if refines is not None:
            architecture = architecture._replace(refines=refines)
        return cls(state, architecture, refines is not None)


class Conversion(NamedTuple):
    """Weights by our names, and how they came about.

    Attributes:
        state: by our names.
        dialect: what they were written by.
        architecture: what they are the weights of.
        problems: what does not fit; only with `allow_missing`.
        notes: what was done besides renaming, a sentence each.
        warnings: what may be wrong, a sentence each.
        dropped: by our names, the class rows that have no place: (rows, ...), in order.
        classes: name of each class row, or None where nobody says.
        rows: for each class row the row that it was, or None if it is fresh; None if none moved.
        source_rows: how many class rows there were; None if there is no class head.
    """

    state: dict[str, Tensor]
    dialect: str
    architecture: Architecture
    problems: Problems
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    dropped: dict[str, Tensor]
    classes: tuple[str | None, ...] | None = None
    rows: tuple[int | None, ...] | None = None
    source_rows: int | None = None
