"""Marks of annotations that keep them from being learned, or that boxes cannot express."""

import math

from ddetr_plugin.data_checks.boxes import Report

__all__ = ['CROWD_REMEDY', 'check_marks']

MANY = 0.2  # the share from which on marks look like a slip
ROTATED = 0.5  # degrees from which on a rectangle is rotated

# What to do where many, or all, are crowds.
CROWD_REMEDY = (
    'is every one a single object? Some exports of masks set iscrowd to 1 because the mask is '
    'stored as RLE: set it to 0. A region with several objects that nobody separated keeps 1'
)


def check_marks(annotations: list[dict], report: Report) -> None:
    """Reports how many boxes are marked as crowds, to be ignored, or as rotated.

    Args:
        annotations: entries of the file.
        report: called with level, kind, part, id, detail and remedy of every `Finding`.
    """
    if not annotations:
        return
    crowds = [a for a in annotations if a.get('iscrowd')]
    # What `check_use` says where all of them are.
    if MANY * len(annotations) < len(crowds) < len(annotations):
        report(
            'warning',
            'many annotations are marked as crowds',
            'annotation',
            crowds[0]['id'],
            f'{_share(crowds, annotations)} have iscrowd 1: they are neither learned nor scored',
            CROWD_REMEDY,
        )
    ignored = [a for a in annotations if a.get('ignore') and not a.get('iscrowd')]
    if ignored:
        report(
            'warning' if len(ignored) > MANY * len(annotations) else 'note',
            'annotations that are marked to be ignored',
            'annotation',
            ignored[0]['id'],
            f'{_share(ignored, annotations)} have ignore 1: they are neither trained nor scored',
            'nothing, if that is meant; else remove ignore, or set it to 0',
        )
    rotated = [a for a in annotations if 'attributes' in a and _is_rotated(a)]
    if rotated:
        angle = _rotation(rotated[0])
        report(
            'warning',
            'rotated rectangles',
            'annotation',
            rotated[0]['id'],
            f'{_share(rotated, annotations)} have attributes.rotation, the first {angle:g} degrees',
            'boxes are upright, and rotation is not read: bbox is the rectangle before it was '
            'rotated. Write the upright box around the rotated rectangle instead',
        )


def _share(some: list, annotations: list) -> str:
    return f'{len(some)} of {len(annotations)} annotations ({len(some) / len(annotations):.0%})'


def _rotation(annotation: dict) -> float:
    """Degrees of CVAT's `attributes.rotation`; 0 without it."""
    attributes = annotation.get('attributes')
    angle = attributes.get('rotation') if isinstance(attributes, dict) else None
    return angle if isinstance(angle, (int, float)) and math.isfinite(angle) else 0


def _is_rotated(annotation: dict) -> bool:
    # Half a turn leaves a rectangle where it is.
    return ROTATED <= _rotation(annotation) % 180 <= 180 - ROTATED
