"""The annotation files that a config names, repaired in the work folder before a training."""

from collections.abc import Mapping, MutableMapping
from pathlib import Path

from ddetr_plugin.data_checks import Finding, box_datasets, dataset_folder
from ddetr_plugin.intake.changes import Changes, write_json
from ddetr_plugin.intake.folder import read_split
from ddetr_plugin.intake.tree import Tree

__all__ = ['ConfigRepairs', 'repair_config']


class ConfigRepairs:
    """What `repair_config` has found.

    Attributes:
        contents: of the files to be written, by their paths.
        changes: differences between the originals and these.
        findings: what is not clear.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.contents: dict[Path, dict] = {}
        self.changes = Changes()
        self.findings: list[Finding] = []

    def write(self) -> None:
        """Writes the files, and all changes into data_changes.json beside them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, content in self.contents.items():
            write_json(path, content)
        write_json(self.folder / 'data_changes.json', self.changes.entries())


def repair_config(config: Mapping, folder: Path) -> ConfigRepairs:
    """Points a config to repaired annotation files where its own need it; writes nothing yet.

    Every process of a distributed run finds the same; one of them writes. Files of boxes that
    mmdet's CocoDataset reads from a local disk are looked at. Categories stay: which of them are
    classes, the config says. What cannot be read is left for `check_config` to report.

    Args:
        config: as `load_config` has just read it; changed in place.
        folder: for the repaired files.
    """
    repairs = ConfigRepairs(folder.resolve())
    written: dict[tuple, tuple] = {}
    evaluators: dict[Path, Path] = {}
    for dataset, ann_file, images in box_datasets(config):
        if ann_file in repairs.contents or not ann_file.is_file():
            continue
        if (ann_file, images) not in written:
            path = repairs.folder / f'{len(written)}_{ann_file.name}'
            try:
                written[ann_file, images] = _repair(ann_file, images, dataset, path, repairs)
            except ValueError:
                continue
        path, where = written[ann_file, images]
        if path is not None:
            dataset['ann_file'] = str(path)
            prefixes = dataset.get('data_prefix') or {}
            dataset['data_prefix'] = dict(prefixes, img=str(where.resolve()))
            evaluators[ann_file] = path
    for name in ('val_evaluator', 'test_evaluator'):
        found = config.get(name) or []
        for evaluator in [found] if isinstance(found, MutableMapping) else found:
            repaired = evaluators.get(Path(evaluator.get('ann_file') or ''))
            if repaired is not None:
                evaluator['ann_file'] = str(repaired)
    return repairs


def _repair(ann_file, images, dataset, path, repairs) -> tuple[Path | None, Path]:
    """The repaired file and the folder of its images; None instead of a file that is right."""
    tree = Tree(Path(dataset.get('data_root') or dataset_folder(ann_file)))
    known = images if images.is_dir() else None
    split, findings = read_split('train', ann_file, tree, repairs.changes, known)
    repairs.findings += findings
    if not repairs.changes.of(ann_file):
        return None, images
    repairs.contents[path] = split.content
    return path, split.image_folder
