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


def check_marks(regions: list[dict], noun: str, report: Report) -> None:
    """Reports how many boxes or segments are marked as crowds, to be ignored, or as rotated.

    Args:
        regions: what is annotated.
        noun: what one is called: 'annotation' or 'segment'.
        report: called with level, kind, part, id, detail and remedy of every `Finding`.
    """

    def found(level, kind, marked, words, remedy):
        share = f'{len(marked)} of {len(regions)} {noun}s ({len(marked) / len(regions):.0%})'
        report(level, kind, noun, marked[0]['id'], f'{share} have {words}', remedy)

    crowds = [region for region in regions if region.get('iscrowd')]
    # Where all are, `check_use` says so.
    if MANY * len(regions) < len(crowds) < len(regions):
        words = 'iscrowd 1: they are neither learned nor scored'
        found('warning', f'many {noun}s are marked as crowds', crowds, words, CROWD_REMEDY)
    ignored = [r for r in regions if r.get('ignore') and not r.get('iscrowd')]
    if ignored and noun == 'annotation':
        found(
            'warning' if len(ignored) > MANY * len(regions) else 'note',
            'annotations that are marked to be ignored',
            ignored,
            'ignore 1: they are neither trained nor scored',
            'nothing, if that is meant; else remove ignore, or set it to 0',
        )
    rotated = [region for region in regions if 'attributes' in region and _is_rotated(region)]
    if rotated:
        found(
            'warning',
            'rotated rectangles',
            rotated,
            f'attributes.rotation, the first {_rotation(rotated[0]):g} degrees',
            'boxes are upright, and rotation is not read: bbox is the rectangle before it was '
            'rotated. Write the upright box around the rotated rectangle instead',
        )


def _rotation(annotation: dict) -> float:
    """Degrees of CVAT's `attributes.rotation`; 0 without it."""
    attributes = annotation.get('attributes')
    angle = attributes.get('rotation') if isinstance(attributes, dict) else None
    return angle if isinstance(angle, (int, float)) and math.isfinite(angle) else 0


def _is_rotated(annotation: dict) -> bool:
    # Half a turn leaves a rectangle where it is.
    return ROTATED <= _rotation(annotation) % 180 <= 180 - ROTATED
