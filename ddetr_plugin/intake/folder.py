"""A folder as an annotation tool left it, read as a training and a validation split."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ddetr_plugin.data_checks import (
    PLAIN,
    Finding,
    Split,
    dataset_folder,
    encoding_of,
    read_json,
    require_coco,
)
from ddetr_plugin.intake.building import Builder
from ddetr_plugin.intake.changes import Changes, write_json
from ddetr_plugin.intake.classes import align_classes, drop_super_classes
from ddetr_plugin.intake.coco import image_names, normalise
from ddetr_plugin.intake.held_out import split_off_validation
from ddetr_plugin.intake.images import image_size, locate_images
from ddetr_plugin.intake.labelme import read_labelme
from ddetr_plugin.intake.sources import PLACES, choose_splits, find_coco
from ddetr_plugin.intake.tree import Tree
from ddetr_plugin.intake.voc import read_voc
from ddetr_plugin.intake.yolo import read_yolo

__all__ = ['DataFolder', 'read_folder', 'read_split']


class DataFolder(NamedTuple):
    """What a folder holds.

    Attributes:
        format: 'COCO', 'YOLO', 'Pascal VOC' or 'LabelMe'.
        train: the training split.
        val: the validation split, or None.
        changes: differences between the files and the contents of the splits.
        findings: what could not be read, or is not clear.
        notes: lines about what was chosen.
        held_out: whether `val` is a part of what the files have for training.
    """

    format: str
    train: Split
    val: Split | None
    changes: Changes
    findings: list[Finding]
    notes: list[str]
    held_out: bool = False

    def both(self) -> tuple[Split, Split]:
        """The training and the validation split.

        Raises:
            ValueError: there is no validation split; `hold_out` makes one.
        """
        if self.val is None:
            raise ValueError('there is no validation split; hold_out() makes one')
        return self.train, self.val

    def hold_out(self) -> 'DataFolder':
        """The same data, with a part of the training split as the validation split it lacks.

        Raises:
            ValueError: see `split_off_validation`.
        """
        train, val = split_off_validation(self.train)
        return self._replace(train=train, val=val, held_out=True)

    def convert(self, change: Callable[[dict], dict], kind: str) -> 'DataFolder':
        """The same data, with contents that a function makes of those that were read.

        Args:
            change: from a COCO-format dict to another one.
            kind: what it does, for the list of changes.
        """

        def converted(split: Split) -> Split:
            self.changes.add(split.ann_file, kind, 'all', None, None)
            return split._replace(content=change(split.content))

        return self._replace(train=converted(self.train), val=self.val and converted(self.val))

    def place(self, folder: Path) -> 'DataFolder':
        """The same data, with the annotation files that `write` writes into a folder.

        That are instances_train.json and instances_val.json, each only where the split is not as a
        file in COCO's format has it already.
        """

        def placed(split: Split) -> Split:
            if self._is_as_its_file(split):
                return split
            return split._replace(ann_file=folder / f'instances_{split.name}.json')

        return self._replace(train=placed(self.train), val=self.val and placed(self.val))

    def write(self, folder: Path) -> None:
        """Writes what `place` has put into a folder, and data_changes.json, all changes.

        The originals stay as they are.
        """
        folder.mkdir(parents=True, exist_ok=True)
        placed = [s for s in (self.train, self.val) if s and s.ann_file.parent == folder]
        for split in placed:
            write_json(split.ann_file, split.content)
        if placed:
            write_json(folder / 'data_changes.json', self.changes.entries())

    def _is_as_its_file(self, split: Split) -> bool:
        return self.format == 'COCO' and not self.held_out and not self.changes.of(split.ann_file)


def read_folder(path: str | os.PathLike, keep_super_classes: bool = False) -> DataFolder:
    """Reads COCO, YOLO, Pascal VOC or LabelMe files; nothing is written.

    The first of these formats that is there is read. Which annotation files are of which split,
    their names and those of their folders say.

    Args:
        path: folder of a data set, or one annotation file in COCO's format.
        keep_super_classes: keep categories that only group the others, see `drop_super_classes`.

    Raises:
        FileNotFoundError: nothing is there, or no annotations.
        ValueError: they cannot be read, or it is not clear which are meant.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist (looked from {Path.cwd()})')
    if path.is_file():
        tree = Tree(dataset_folder(path))
        chosen = dict(train=tree.relative(path))
    else:
        tree = Tree(path)
        candidates = find_coco(tree)
        chosen = choose_splits(candidates, tree) if candidates else {}
    changes = Changes()
    if chosen:
        return _from_coco(chosen, tree, changes, keep_super_classes)
    for name, read in _other_formats(tree, changes):
        found = read()
        if found is not None:
            builders, names = found
            return _from_builders(name, builders, names, tree, changes)
    raise FileNotFoundError(
        f'{path} has no training annotations, among {len(tree.files)} files of which '
        f'{len(tree.images)} are images. What is read: JSON in COCO format, such as '
        f'{PLACES[0].format("train")}; YOLO (data.yaml, labels/*.txt); Pascal VOC '
        '(Annotations/*.xml); LabelMe (a JSON file for every image)'
    )


def _other_formats(tree: Tree, changes: Changes) -> list[tuple[str, Callable]]:
    return [
        ('YOLO', lambda: read_yolo(tree)),
        ('Pascal VOC', lambda: read_voc(tree, changes)),
        ('LabelMe', lambda: read_labelme(tree, changes)),
    ]


def read_split(
    name: str, file: Path, tree: Tree, changes: Changes, folder: Path | None = None
) -> tuple[Split, list[Finding]]:
    """One split of an annotation file in COCO's format.

    Args:
        name: 'train' or 'val'.
        file: the annotation file.
        tree: of the data set.
        changes: gets what is changed.
        folder: of the images, if it is known; else it is looked for.

    Returns:
        (split, findings): the findings are about images that are not clear.

    Raises:
        ValueError: the file is not in COCO's format.
    """
    content = read_json(file)
    encoding = encoding_of(file)
    if encoding != PLAIN:
        changes.add(file, 'encoding', 'the file', encoding, PLAIN)
    entries = content if isinstance(content, dict) else {}
    if not all(isinstance(entries.get(p), list) for p in ('images', 'annotations', 'categories')):
        require_coco(file, content)
    names = image_names(content)
    images, located, findings = locate_images(file, names, tree, changes, folder)
    content = normalise(file, content, located, lambda n: image_size(images / n), changes)
    require_coco(file, content)
    return Split(name, file, images, content), findings


def _from_coco(chosen: dict, tree: Tree, changes: Changes, keep_super_classes: bool) -> DataFolder:
    splits, findings = [], []
    for name, file in chosen.items():
        split, found = read_split(name, tree.root / file, tree, changes)
        splits.append(split)
        findings += found
    if not keep_super_classes:
        splits = drop_super_classes(splits, changes)
    train, val = splits[0], splits[1] if len(splits) > 1 else None
    if val is not None:
        val = align_classes(train, val, changes)
    notes = [f'{name}: {tree.root / file}' for name, file in chosen.items()]
    return DataFolder('COCO', train, val, changes, findings, notes)


def _from_builders(
    form: str, builders: dict[str, Builder], names: list[str], tree: Tree, changes: Changes
) -> DataFolder:
    findings = [f for builder in builders.values() for f in builder.findings]
    splits = {
        name: Split(name, builder.file, tree.root, builder.content(names))
        for name, builder in builders.items()
    }
    val = splits.get('val') or splits.get('test')
    notes = [f'{name}: {len(b)} images of {b.file}' for name, b in builders.items()]
    val = val and val._replace(name='val')
    return DataFolder(form, splits['train'], val, changes, findings, notes)
