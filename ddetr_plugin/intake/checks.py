"""A data folder, read and checked before a training on it."""

from collections.abc import Mapping, Sequence
from os import PathLike

from ddetr_plugin.data_checks import (
    Finding,
    Split,
    check_capacity,
    check_split,
    check_splits,
    to_pixels,
)
from ddetr_plugin.intake.folder import DataFolder, read_folder

__all__ = [
    'SCALES',
    'check_data',
    'check_folder',
    'check_model',
    'describe',
    'describe_changes',
    'read_data',
]

SCALES = ((320, 320),)  # the smallest that the config for own images resizes to


def read_data(
    folder: str | PathLike, keep_super_classes: bool = False, boxes: str = 'pixels'
) -> DataFolder:
    """The DataFolder of a data set.

    Args:
        folder, keep_super_classes: see `read_folder`.
        boxes: what the numbers of boxes are, 'pixels' or a key of BOX_FORMS.

    Raises:
        As `read_folder`; ValueError: the boxes are of another form.
    """
    data = read_folder(folder, keep_super_classes)
    if boxes == 'pixels':
        return data
    return data.convert(lambda content: to_pixels(content, boxes), f'{boxes} boxes became pixels')


def check_folder(
    folder: str | PathLike, scales: Sequence[tuple[int, int]] = SCALES, boxes: str = 'pixels'
) -> tuple[Split, Split | None, list[Finding]]:
    """Finds and checks the splits of a data set.

    Args:
        folder: of the data set.
        scales: (width, height) pairs that images are resized to, their ratio kept.
        boxes: what their numbers are: 'pixels', or a key of `BOX_FORMS`.

    Returns:
        (train Split, val Split or None, list of Findings).

    Raises:
        As `read_folder`.
    """
    data = read_data(folder, boxes=boxes)
    return data.train, data.val, check_data(data, scales)


def check_data(data: DataFolder, scales: Sequence[tuple[int, int]] = SCALES) -> list[Finding]:
    """All findings of a DataFolder; `scales` as `check_folder`."""
    train, val = data.train, data.val
    # Without validation data, a training on the folder takes some of the training's.
    findings = data.findings + check_split(train, scales, scored=val is None)
    if val is not None:
        findings += check_split(val, scales) + check_splits(train, val)
    return findings


def check_model(model: Mapping, train: Split, val: Split | None = None) -> list[Finding]:
    """The Findings about splits of a folder that a config's `model` is too small for."""
    return [
        finding
        for split in (train, val)
        if split is not None
        for finding in check_capacity(
            model, split.ann_file, split.content, None, split is val or val is None
        )
    ]


def describe(split: Split) -> str:
    """One line about a split."""
    content = split.content
    there = '' if split.image_folder.is_dir() else ', which does not exist'
    return (
        f'{split.name}: {len(content["images"])} pictures in {split.image_folder}{there}, '
        f'{len(content["annotations"])} boxes, {len(content["categories"])} classes'
    )


def describe_changes(data: DataFolder) -> list[str]:
    """Lines on what a DataFolder was read from, and what had to be changed."""
    lines = [f'Read as {data.format}: {"; ".join(data.notes)}']
    if data.changes:
        lines.append('Changed on reading (the files stay as they are):')
        lines += [f'    {line}' for line in data.changes.lines()]
    return lines
