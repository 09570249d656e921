"""The configs that come with this package: found by name, and listed."""

from pathlib import Path
from typing import NamedTuple

__all__ = ['ConfigRecord', 'find_config', 'list_configs']

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


class ConfigRecord(NamedTuple):
    """What is known of one config; None where it is not."""

    name: str
    path: Path
    title: str = ''
    parameters: int | None = None
    published_ap: float | None = None
    published_pq: float | None = None
    source: str | None = None
    paper: str | None = None
    needs: tuple[str, ...] = ()
    weights: str | None = None


def list_configs() -> list[ConfigRecord]:
    """All configs of the checkout, by name."""
    paths = (p for p in sorted(CONFIGS.rglob('*.py')) if '_base_' not in p.parts)
    return [ConfigRecord(path.stem, path) for path in paths]


def find_config(name_or_path: str | Path) -> Path:
    """The file of a config.

    Raises:
        FileNotFoundError: it is neither a file nor the name of one.
    """
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    for record in list_configs():
        if record.name == str(name_or_path).removesuffix('.py'):
            return record.path
    raise FileNotFoundError(
        f'config {name_or_path} does not exist (looked from {Path.cwd()}), and no config of '
        'ddetr_plugin has this name'
    )
