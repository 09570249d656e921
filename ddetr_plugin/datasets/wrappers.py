"""Configs of data sets inside wrappers such as RepeatDataset and ConcatDataset."""

from collections.abc import Iterator, Mapping

__all__ = ['base_dataset_configs']


def base_dataset_configs(dataset: Mapping | None) -> Iterator[Mapping]:
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
