"""Which classes a data set has, as its config says it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.fileio import list_from_file

from ddetr_plugin.config_types import type_class
from ddetr_plugin.datasets.wrappers import base_dataset_configs

__all__ = ['class_names', 'dataset_classes']


def dataset_classes(config: Mapping) -> tuple[str, ...] | None:
    """The class names that a config trains on, else tests on; None if it does not say.

    They are the metainfo of its first data set, wrapped or not, or what the type of that brings
    along.
    """
    for split in ('train', 'val', 'test'):
        loader = config.get(f'{split}_dataloader') or {}
        dataset = next(base_dataset_configs(loader.get('dataset')), None)
        if dataset is None:
            continue
        classes = (dataset.get('metainfo') or {}).get('classes')
        if classes is None:
            # Here, since mmdet is slow to import, and most configs say it themselves.
            from mmdet.registry import DATASETS

            kind = type_class(dataset, DATASETS)
            classes = getattr(kind, 'METAINFO', {}).get('classes')
        if classes is not None:
            return class_names(classes)
    return None


def class_names(classes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """What `metainfo.classes` of a dataset means: names, one name, or a file with one a line."""
    if isinstance(classes, str):
        return tuple(list_from_file(classes)) if Path(classes).is_file() else (classes,)
    return None if classes is None else tuple(classes)
