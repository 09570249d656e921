"""The data sets of a config, checked before it is trained."""

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from ddetr_plugin.config_types import type_class, type_name
from ddetr_plugin.data_checks.capacity import check_capacity
from ddetr_plugin.data_checks.findings import Finding
from ddetr_plugin.data_checks.panoptic import check_panoptic_split
from ddetr_plugin.data_checks.reading import (
    check_encoding,
    read_annotations,
    read_panoptic,
)
from ddetr_plugin.data_checks.splits import (
    Split,
    check_class_names,
    check_split,
    check_splits,
)
from ddetr_plugin.datasets.class_names import class_names
from ddetr_plugin.datasets.image_files import decoding_of
from ddetr_plugin.datasets.wrappers import base_dataset_configs

__all__ = ['box_datasets', 'check_config', 'config_scales', 'has_checked_data']

CHECKED_LOADERS = ('train_dataloader', 'val_dataloader')


def check_config(config: Mapping, decode: bool = False) -> list[Finding]:
    """All findings of the training and validation data that a config names.

    Datasets that read COCO format by mmdet's CocoDataset or CocoPanopticDataset are looked at,
    wrapped ones too; of others, and of files that are not on a local disk, a note says that they
    are not.

    Args:
        config: with `train_dataloader` and, maybe, `val_dataloader` and `model`.
        decode: look into every picture; else only whether it is there, which takes seconds.
    """
    splits: dict[str, list[tuple]] = dict(train=[], val=[])
    findings: list[Finding] = []
    scales = config_scales(config) if decode else []
    model = config.get('model') or {}
    for name in splits:
        loader = config.get(f'{name}_dataloader')
        findings += map(_not_checked, _other_datasets(loader))
        for dataset, classes, panoptic in _coco_datasets(loader):
            ann_file = Path(_join(dataset, dataset['ann_file']))
            prefixes = dataset.get('data_prefix') or {}
            folder = Path(_join(dataset, prefixes.get('img') or ''))
            try:
                content = (
                    read_panoptic(ann_file)
                    if panoptic
                    else read_annotations(ann_file, polygons=False)
                )
            except (OSError, ValueError) as error:
                findings.append(_unreadable(ann_file, error))
                continue
            findings += check_encoding(ann_file)
            split = Split(name, ann_file, folder, content)
            splits[name].append((split, classes))
            scored = name != 'train'
            decoding = decoding_of(dataset.get('pipeline'))
            if panoptic:
                seg = prefixes.get('seg')
                maps = None if seg is None else Path(_join(dataset, seg))
                num_things = _num_things(dataset, model)
                findings += check_panoptic_split(
                    split, maps, classes, num_things, scales, decode, scored, decoding
                )
            else:
                findings += check_split(split, scales, decode, scored, decoding)
                findings += check_class_names(split, classes) if classes is not None else []
                # Without a validation, detections on the training data are what anybody looks at.
                looked_at = scored or not config.get('val_dataloader')
                findings += check_capacity(model, ann_file, content, classes, looked_at)
            if classes is not None:
                findings += _check_model(model, len(classes), ann_file)
    for train, learned in splits['train']:
        for val, known in splits['val']:
            if train.ann_file != val.ann_file:
                findings += check_splits(train, val, (learned, known))
    # Several datasets may have the same finding about the model, or about a shared file.
    return list(dict.fromkeys(findings))


def has_checked_data(config: Mapping) -> bool:
    """Whether `check_config` looks at any of the data that a config names."""
    return any(True for name in CHECKED_LOADERS for _ in _coco_datasets(config.get(name)))


def box_datasets(config: Mapping) -> Iterator[tuple[MutableMapping, Path, Path]]:
    """(config, annotation file, folder of images) of the datasets of boxes on a local disk.

    Of all loaders; those that mmdet's CocoDataset reads, wrapped ones too.
    """
    for name in (*CHECKED_LOADERS, 'test_dataloader'):
        for dataset, _, panoptic in _coco_datasets(config.get(name)):
            if not panoptic:
                prefixes = dataset.get('data_prefix') or {}
                folder = Path(_join(dataset, prefixes.get('img') or ''))
                yield dataset, Path(_join(dataset, dataset['ann_file'])), folder


def config_scales(config: Mapping) -> list[tuple[int, int]]:
    """The (width, height) pairs that a config's pipelines resize pictures to."""
    scales: list = []
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        for step in ((config.get(loader) or {}).get('dataset') or {}).get('pipeline') or ():
            if 'Resize' in type_name(step) and step.get('keep_ratio'):
                scales += step.get('scales') or [step.get('scale')]
    return [tuple(scale) for scale in scales if isinstance(scale, (tuple, list))]


def _num_things(dataset: Mapping, model: Mapping) -> dict[int, str]:
    """The numbers of things that a config states, with the places."""
    places = {
        type_name(step): step for step in dataset.get('pipeline') or () if 'num_things' in step
    }
    head = model.get('mask_head')
    if isinstance(head, Mapping) and 'num_things' in head:
        places['model.mask_head'] = head
    stated: dict[int, str] = {}
    for place, settings in places.items():
        number = settings['num_things']
        stated[number] = f'{stated[number]} and {place}' if number in stated else place
    return stated


def _coco_datasets(
    loader: Mapping | None,
) -> Iterator[tuple[MutableMapping, tuple[str, ...] | None, bool]]:
    """The configs of datasets in COCO format on a local disk.

    Each with its class names, and whether its format is the panoptic one.
    """
    from mmdet.datasets import CocoPanopticDataset

    for dataset in base_dataset_configs((loader or {}).get('dataset')):
        kind = _checked_type(dataset)
        if kind is None:
            continue
        classes = (dataset.get('metainfo') or {}).get('classes') or kind.METAINFO.get('classes')
        yield dataset, class_names(classes), _reads_as(kind, CocoPanopticDataset)


def _other_datasets(loader: Mapping | None) -> Iterator[Mapping]:
    """The configs of datasets that are not looked at."""
    return (
        dataset
        for dataset in base_dataset_configs((loader or {}).get('dataset'))
        if _checked_type(dataset) is None
    )


def _checked_type(dataset: Mapping) -> type[Any] | None:
    """The type of a dataset that is looked at; None of others."""
    from mmdet.datasets import CocoDataset, CocoPanopticDataset
    from mmdet.registry import DATASETS

    kind = type_class(dataset, DATASETS)
    read = any(_reads_as(kind, coco) for coco in (CocoDataset, CocoPanopticDataset))
    return kind if read and _is_local(dataset) else None


def _reads_as(kind, coco: type) -> bool:
    """Whether a type of dataset reads its files as `coco`, one of mmdet's, does."""
    # LVIS files have another form.
    return (
        isinstance(kind, type)
        and issubclass(kind, coco)
        and all(getattr(kind, n) is getattr(coco, n) for n in ('COCOAPI', 'load_data_list'))
    )


def _is_local(dataset: Mapping) -> bool:
    paths = (dataset.get('ann_file') or '://', dataset.get('data_root') or '')
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    return backend in ('local', 'disk') and not any('://' in str(path) for path in paths)


def _join(dataset: Mapping, path: str) -> str:
    """A path of a dataset's config, as mmengine's BaseDataset understands it."""
    root = dataset.get('data_root') or ''
    return path if not root or Path(path).is_absolute() else str(Path(root) / path)


def _not_checked(dataset: Mapping) -> Finding:
    return Finding(
        'note',
        'data sets that are not looked into',
        str(_join(dataset, str(dataset.get('ann_file') or ''))),
        None,
        None,
        f'{type_name(dataset)}: only local files that CocoDataset or CocoPanopticDataset reads are',
        'nothing, or check it by other means',
    )


def _unreadable(ann_file: Path, error: Exception) -> Finding:
    missing = isinstance(error, FileNotFoundError)
    return Finding(
        'error',
        'missing annotation files' if missing else 'annotation files that cannot be read',
        str(ann_file),
        None,
        None,
        f'looked from {Path.cwd()}' if missing else str(error),
        'correct data_root or ann_file in the config, or put the file there'
        if missing
        else 'write it again, in COCO format',
    )


def _check_model(model: Mapping, count: int, ann_file: Path) -> list[Finding]:
    """Whether the detector's heads know every class of the data."""
    findings = []
    for name in ('bbox_head', 'mask_head'):
        head = model.get(name)
        number = head.get('num_classes') if isinstance(head, Mapping) else None
        if number is None or number == count:
            continue
        findings.append(
            Finding(
                'error' if number < count else 'warning',
                'another number of classes in the model than in the data',
                str(ann_file),
                None,
                None,
                f'model.{name}.num_classes is {number}, the dataset has {count} classes',
                f'set model.{name}.num_classes={count}, or metainfo.classes of the datasets',
            )
        )
    return findings
