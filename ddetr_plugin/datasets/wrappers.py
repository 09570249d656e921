"""Data sets inside wrappers such as RepeatDataset and ConcatDataset, and their configs."""

from collections.abc import Iterator, MutableMapping

from mmengine.dataset import BaseDataset

__all__ = ['base_dataset_configs', 'base_datasets']


def base_dataset_configs(dataset: MutableMapping | None) -> Iterator[MutableMapping]:
    """The configs of the data sets that read files, in order; `dataset` itself if it is one.

    Args:
        dataset: `dataset` of a data loader's config, or None, which holds none.
    """
    if not dataset:
        return
    if 'dataset' not in dataset and 'datasets' not in dataset:
        yield dataset
        return
    for part in (dataset.get('dataset'), *(dataset.get('datasets') or ())):
        yield from base_dataset_configs(part)


def base_datasets(dataset) -> Iterator[BaseDataset]:
    """The data sets inside wrappers, those that have a pipeline; `dataset` itself if it is one."""
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from base_datasets(part)
    elif hasattr(dataset, 'dataset'):
        yield from base_datasets(dataset.dataset)
    elif hasattr(dataset, 'pipeline'):
        yield dataset
