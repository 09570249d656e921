"""Images that are of another size than their annotation file says: which of the two is right."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ddetr_plugin.data_checks.boxes import is_box
from ddetr_plugin.data_checks.findings import Finding

__all__ = ['SizeMismatch', 'judge_sizes']

ROUNDING = 1  # pixels that a box may stick out of its image
OTHER_SIZE = 'pictures of another size than stated'
SIZES = ('decoded', 'stated')


class SizeMismatch(NamedTuple):
    """An image whose file is of another size than the annotation file says.

    Attributes:
        path: the file.
        image: its entry in the annotation file.
        decoded: (width, height) in pixels of what a training gets.
        orientation: EXIF's number for how to turn it; 1 where there is none.
    """

    path: Path
    image: dict
    decoded: tuple[int, int]
    orientation: int

    @property
    def stated(self) -> tuple[int, int]:
        """(width, height) of the annotation file."""
        return self.image['width'], self.image['height']

    @property
    def exchanged(self) -> bool:
        """Whether width is height and height width."""
        return self.decoded[::-1] == self.stated


def judge_sizes(
    mismatches: Sequence[SizeMismatch], annotations: Iterable[dict] = ()
) -> list[Finding]:
    """An error for each, with the remedy that its boxes call for.

    Boxes that fit only one of the two sizes belong to it. Of an image whose boxes fit both, the
    others with exchanged sides decide, as one program wrote them all.

    Args:
        mismatches: of images of one annotation file.
        annotations: of that file; those with a `bbox` are looked at.
    """
    if not mismatches:
        return []
    boxes: dict = {mismatch.image['id']: [] for mismatch in mismatches}
    for annotation in annotations:
        if annotation['image_id'] in boxes and is_box(annotation.get('bbox')):
            boxes[annotation['image_id']].append(annotation['bbox'])
    belong = [_size_of(mismatch, boxes[mismatch.image['id']]) for mismatch in mismatches]
    decided = {b for m, b in zip(mismatches, belong) if m.exchanged and b}
    common = decided.pop() if len(decided) == 1 else None
    return [
        _exchanged(m, b or common) if m.exchanged else _other_size(m, b)
        for m, b in zip(mismatches, belong)
    ]


def _size_of(mismatch: SizeMismatch, boxes: list) -> str | None:
    """Which size the boxes (x, y, width, height) belong to; None if they may to both or neither."""
    right = max((x + width for x, _, width, _ in boxes), default=0) - ROUNDING
    bottom = max((y + height for _, y, _, height in boxes), default=0) - ROUNDING
    fit = [
        name
        for name, (width, height) in zip(SIZES, (mismatch.decoded, mismatch.stated))
        if right <= width and bottom <= height
    ]
    return fit[0] if len(fit) == 1 else None


def _exchanged(mismatch: SizeMismatch, belong: str | None) -> Finding:
    width, height = mismatch.decoded
    turned = mismatch.orientation != 1
    reason = f'EXIF orientation {mismatch.orientation}, ' if turned else ''
    detail = f'{reason}upright {width} x {height}, annotations say {height} x {width}'
    correct = 'exchange width and height of the image in the annotations; leave the file and boxes'
    turn = 'save it without the EXIF orientation, or turn its boxes with it'
    if belong == 'decoded':
        kind = 'images whose width and height are exchanged'
        return _finding(mismatch, kind, f'{detail}; its boxes fit the upright image', correct)
    kind = (
        'pictures that are turned when loaded' if turned else 'pictures of another size than stated'
    )
    if belong == 'stated':
        if not turned:
            turn = 'put the image there that was annotated, or turn its boxes'
        return _finding(mismatch, kind, f'{detail}; its boxes fit what they say', turn)
    return _finding(
        mismatch,
        kind,
        f'{detail}; its boxes fit both',
        f'look at one in a viewer that turns images. If the boxes are right there: {correct}. If '
        f'not: {turn}',
    )


def _other_size(mismatch: SizeMismatch, belong: str | None) -> Finding:
    detail = 'is {} x {}, annotations say {} x {}'.format(*mismatch.decoded, *mismatch.stated)
    if belong == 'decoded':
        detail += '; its boxes fit the image'
        return _finding(mismatch, OTHER_SIZE, detail, 'correct width and height in the annotations')
    if belong == 'stated':
        detail += '; its boxes fit what they say'
        remedy = 'was the image resized? Put the original there, or resize the boxes with it'
        return _finding(mismatch, OTHER_SIZE, detail, remedy)
    remedy = 'correct width and height (and the boxes, if they belong to the stated size)'
    return _finding(mismatch, OTHER_SIZE, detail, remedy)


def _finding(mismatch: SizeMismatch, kind: str, detail: str, remedy: str) -> Finding:
    path, image_id = str(mismatch.path), mismatch.image['id']
    return Finding('error', kind, path, 'image', image_id, detail, remedy)
