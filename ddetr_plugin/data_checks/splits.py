"""Training and validation data as a whole: each split, and whether they fit together."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ddetr_plugin.data_checks.annotations import check_annotations
from ddetr_plugin.data_checks.findings import Finding, has_errors
from ddetr_plugin.data_checks.pictures import Scales, check_pictures, find_missing
from ddetr_plugin.data_checks.whereabouts import Whereabouts, dataset_folder
from ddetr_plugin.datasets.image_files import AS_MMCV, Decoding

__all__ = [
    'Split',
    'check_class_names',
    'check_images',
    'check_labels',
    'check_split',
    'check_splits',
    'left_out',
]


class Split(NamedTuple):
    """One split: where it is and what its annotation file holds.

    Attributes:
        name: 'train' or 'val'.
        ann_file: COCO-format JSON.
        image_folder: that `file_name` is relative to.
        content: as `read_annotations` or `read_panoptic` returns it.
    """

    name: str
    ann_file: Path
    image_folder: Path
    content: dict

    @property
    def classes(self) -> list[str]:
        """Names in the order of the file, which is the order of mmdet's labels."""
        return [category['name'] for category in self.content['categories']]


def check_split(
    split: Split,
    scales: Scales = (),
    decode: bool = True,
    scored: bool = True,
    decoding: Decoding = AS_MMCV,
) -> list[Finding]:
    """All findings of one split.

    Args:
        split: the split.
        scales: (width, height) pairs that pictures are resized to, their ratio kept.
        decode: look into every picture; else only whether it is there.
        scored: whether detections are to be compared with it.
        decoding: how the pipeline decodes pictures.
    """
    findings = check_annotations(split.ann_file, split.content, split.name == 'train', scored)
    return findings + check_images(split, scales, decode, decoding)


def check_images(
    split: Split, scales: Scales = (), decode: bool = True, decoding: Decoding = AS_MMCV
) -> list[Finding]:
    """Of one split, what is wrong with its image files; arguments as `check_split`."""
    folder, images = split.image_folder, split.content['images']
    whereabouts = Whereabouts([folder, dataset_folder(split.ann_file)])
    if not decode:
        return find_missing(folder, images, whereabouts=whereabouts)
    annotations = split.content['annotations']
    return check_pictures(folder, images, scales, annotations, decoding, whereabouts)


def check_splits(
    train: Split, val: Split, chosen: Sequence[Sequence[str] | None] = (None, None)
) -> list[Finding]:
    """What does not fit between two splits: their classes, and pictures that both have.

    Args:
        train: what is trained on.
        val: what is validated on.
        chosen: for each, the classes that a config names; None for all. Of those that it leaves
            out, and of those that one file lacks at the end, `check_class_names` speaks.
    """
    return _check_classes(train, val, chosen) + _check_overlap(train, val)


def _check_classes(train: Split, val: Split, chosen) -> list[Finding]:
    """mmdet numbers classes by their order in each file, so that the order matters, too."""
    named = [
        [name for name in split.classes if names is None or name in names]
        for split, names in zip((train, val), chosen)
    ]
    length = min(map(len, named)) if None not in chosen else None
    if named[0][:length] == named[1][:length]:
        return []
    only = [sorted(set(a) - set(b)) for a, b in (named, named[::-1])]
    detail = f'only in {train.name}: {only[0]}; only in {val.name}: {only[1]}'
    if not any(only):
        detail = 'the same classes in another order'
    complete, other = (train, val) if not only[1] else (val, train)
    remedy = f'write the categories of {complete.ann_file}, in its order, into {other.ann_file}'
    if all(only):
        remedy = (
            f'write all categories of both, in one order, into {train.ann_file} and {val.ann_file}'
        )
    kind = 'classes of the splits differ'
    return [Finding('error', kind, str(val.ann_file), None, None, detail, remedy)]


def _check_overlap(train: Split, val: Split) -> list[Finding]:
    files = {train.image_folder / image['file_name'] for image in train.content['images']}
    return [
        Finding(
            'warning',
            'pictures in both train and val',
            str(val.image_folder / image['file_name']),
            'image',
            image['id'],
            f'of {val.ann_file.name}',
            'remove it from one of them: what was trained on says nothing about new pictures',
        )
        for image in val.content['images']
        if val.image_folder / image['file_name'] in files
    ]


def check_class_names(split: Split, classes: Sequence[str]) -> list[Finding]:
    """As `check_labels`, and which classes of a file of boxes are ignored; the same arguments."""
    findings = check_labels(split, classes)
    if has_errors(findings):
        return findings
    remedy = 'their boxes are ignored; add the name to metainfo.classes if that is not meant'
    return findings + [
        Finding(
            'warning',
            'classes that the config leaves out',
            str(split.ann_file),
            'category',
            category['id'],
            category['name'],
            remedy,
        )
        for category in left_out(split.content['categories'], classes)
    ]


def left_out(categories: Sequence[dict], classes: Sequence[str]) -> list[dict]:
    """The categories that a config does not name."""
    return [category for category in categories if category['name'] not in set(classes)]


def check_labels(split: Split, classes: Sequence[str]) -> list[Finding]:
    """Whether the labels that mmdet makes of an annotation file mean what a config says.

    mmdet numbers those categories that the config names, in the order of the file.

    Args:
        split: with the annotation file.
        classes: the config's names, in the order of the model.
    """

    def finding(level, detail, remedy):
        kind = 'classes of the config and the annotations differ'
        return [Finding(level, kind, str(split.ann_file), None, None, detail, remedy)]

    labelled = [name for name in split.classes if name in set(classes)]
    missing = [name for name in classes if name not in set(labelled)]
    if labelled != list(classes)[: len(labelled)] or not labelled:
        pairs = [(a, b) for a, b in zip(labelled, classes) if a != b]
        detail = f'the config names {_some(missing)}, which the file does not have'
        if pairs:
            first = next(i for i, (a, b) in enumerate(zip(labelled, classes)) if a != b)
            detail = (
                f'label {first} is {pairs[0][1]!r} in the config, but {pairs[0][0]!r} by the order '
                f'of the file'
            )
        remedy = (
            f'set metainfo = dict(classes={tuple(split.classes)!r}) in every dataset of the config'
            if len(split.classes) <= 20
            else 'give metainfo.classes in every dataset of the config the names and the order of '
            'the file'
        )
        return finding('error', detail, remedy)
    if missing:
        return finding(
            'warning',
            f'the file lacks {_some(missing)}',
            'they are not learned, or not scored; remove them from metainfo.classes',
        )
    return []


def _some(names: Sequence[str]) -> str:
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(map(repr, names[:5])) + more
