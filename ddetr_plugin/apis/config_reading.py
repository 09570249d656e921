"""Configs as they are read: found by path or name, overridden, and never changed for others."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config

from ddetr_plugin.apis.configs import find_config
from ddetr_plugin.apis.overrides import refuse_unread

__all__ = [
    'enable_auto_scale_lr',
    'load_config',
    'require_checkpoint',
    'require_file',
]

CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')


def require_file(path: str | os.PathLike, what: str) -> None:
    """Raise FileNotFoundError if the local file `path` is missing; URLs pass unchecked."""
    if '://' not in str(path) and not Path(path).is_file():
        raise FileNotFoundError(f'{what} {path} does not exist (looked from {Path.cwd()})')


def require_checkpoint(path: str | os.PathLike) -> None:
    """The same for weights, which may also be a folder as transformers saves it."""
    if not Path(path).is_dir():
        require_file(path, 'checkpoint')


def load_config(
    config: str | os.PathLike | Config,
    overrides: Mapping | None = None,
    work_dir: str | os.PathLike | None = None,
    launcher: str = 'none',
    options: Mapping[str, str] | None = None,
) -> Config:
    """A config as a run takes it.

    Args:
        config: file; name of a config of this package, see `find_config`; or a Config, which stays
            as it is.
        overrides: dotted keys and values, as ``--cfg-options`` gives them.
        work_dir: output folder; default the config's own, else ``work_dirs/<config name>``.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        options: keys that the caller sets by itself, see `refuse_unread`.

    Returns:
        Config, not shared with anyone.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: it is a file of another kind or no valid Python; or an override does not fit it,
            or is one that nothing reads.
    """
    if isinstance(config, Config):
        name = config.filename or 'config'
        config = copy.deepcopy(config)
    else:
        name = find_config(config)
        config = _read(name)
    if overrides:
        try:
            config.merge_from_dict(dict(overrides))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f'{name} and --cfg-options do not go together: {error}') from error
        refuse_unread(config, overrides, options)
    config.launcher = launcher
    if work_dir is not None:
        config.work_dir = str(work_dir)
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs') / Path(name).stem)
    return config


def _read(path: Path) -> Config:
    if path.suffix not in CONFIG_SUFFIXES:
        raise ValueError(
            f'a config ends with {", ".join(CONFIG_SUFFIXES)}; {path} is a file of another kind'
        )
    try:
        return Config.fromfile(path)
    except SyntaxError as error:
        raise ValueError(f'config {path} is not valid Python: {error}') from error


def enable_auto_scale_lr(config: Config) -> None:
    """Turn on mmengine's linear scaling: every lr times (processes * batch_size / base).

    Args:
        config: of `load_config`; changed in place.

    Raises:
        ValueError: the config does not say for which batch size its learning rate is meant.
    """
    settings = config.get('auto_scale_lr')
    if not settings or 'base_batch_size' not in settings:
        raise ValueError(
            '--auto-scale-lr needs the batch size that the learning rate was chosen for; add '
            'auto_scale_lr = dict(enable=False, base_batch_size=32) to the config'
        )
    settings.enable = True
