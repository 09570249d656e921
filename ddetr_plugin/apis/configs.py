"""The configs that come with this package: found by name, and listed with what is known of them."""

from pathlib import Path
from typing import NamedTuple

from mmengine.fileio import load

from ddetr_plugin.config_files import find_config, index_folder

__all__ = ['ConfigRecord', 'find_config', 'list_configs']


class ConfigRecord(NamedTuple):
    """What is known of one config.

    Attributes:
        name: that of the file without '.py'; `find_config` takes it.
        path: the file.
        title: what it is, in a line.
        parameters: number of those that are trained, with the config's own classes.
        published_ap: box AP on COCO val2017, in per cent; None where nobody published it. We have
            not trained on COCO ourselves.
        published_pq: panoptic quality there, in per cent; None likewise.
        source: who published these; None where nobody did.
        paper: URL of the paper that the model is from.
        needs: what it needs beside this package's own requirements, such as 'full mmcv'.
        weights: URL of published weights that fit, as mmdet trained them; None without.
    """

    name: str
    path: Path
    title: str
    parameters: int
    published_ap: float | None
    published_pq: float | None
    source: str | None
    paper: str
    needs: tuple[str, ...]
    weights: str | None


def list_configs() -> list[ConfigRecord]:
    """All configs that `model-index.yml` lists, by model and in the order of its files.

    Raises:
        FileNotFoundError: the package is installed without them.
    """
    folder = index_folder()
    files = [load(folder / name) for name in load(folder / 'model-index.yml')['Import']]
    papers = {
        collection['Name']: collection['Paper']['URL']
        for content in files
        for collection in content['Collections']
    }
    return [
        _record(model, papers[model['In Collection']], folder)
        for content in files
        for model in content['Models']
    ]


def _record(model: dict, paper: str, folder: Path) -> ConfigRecord:
    """The record of one entry of a metafile in OpenMMLab's format."""
    about = model['Metadata']
    metrics = {k: v for result in model.get('Results', ()) for k, v in result['Metrics'].items()}
    return ConfigRecord(
        name=model['Name'],
        path=folder / model['Config'],
        title=about['Title'],
        parameters=about['Parameters'],
        published_ap=metrics.get('box AP'),
        published_pq=metrics.get('PQ'),
        source=about.get('Published By'),
        paper=paper,
        needs=tuple(about.get('Needs', ())),
        weights=model.get('Weights'),
    )
