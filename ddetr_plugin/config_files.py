"""Where the configs that come with this package lie, and how they are found by name."""

import difflib
import os
from pathlib import Path

__all__ = ['PREFIX', 'config_files', 'find_config', 'index_folder']

# Begins the name of a config of an installed package, as in mmengine's `mmdet::detr/NAME.py`.
PREFIX = 'ddetr_plugin::'
_PACKAGE = Path(__file__).resolve().parent
_INDEX = 'model-index.yml'


def index_folder() -> Path:
    """The folder of `model-index.yml`, `configs/` and `tools/`.

    OpenMMLab's packages bring it along as `.mim`. In a checkout, which an editable installation
    is too, it is the checkout itself: there is no second copy that could be out of date.

    Raises:
        FileNotFoundError: neither is there, as where the package was copied by itself.
    """
    folders = (_PACKAGE / '.mim', _PACKAGE.parent)
    for folder in folders:
        if (folder / _INDEX).is_file() and (folder / 'configs').is_dir():
            return folder
    raise FileNotFoundError(
        f'the configs of ddetr_plugin are in none of {", ".join(map(str, folders))}; install the '
        'whole package, with pip install'
    )


def config_files() -> dict[str, Path]:
    """All configs by name, which is that of the file without '.py'; not the parts in `_base_`."""
    folder = index_folder() / 'configs'
    return {
        path.stem: path
        for path in sorted(folder.rglob('*.py'))
        if '_base_' not in path.relative_to(folder).parts
    }


def find_config(name_or_path: str | os.PathLike) -> Path:
    """The file of a config.

    Args:
        name_or_path: an existing file; or the name of a config of this package, with or without
            '.py', such as 'deformable-detr_r50_16xb2-50e_coco'; or its path below `configs/`, such
            as 'detr/detr_r50_16xb4-500e_coco.py'. With the prefix 'ddetr_plugin::' only the
            package is searched, as by mmengine in a config's `_base_`, parts included:
            `ddetr_plugin::_base_/models/detr_r50.py`.

    Raises:
        FileNotFoundError: there is no such config; the message names similar ones.
    """
    name = str(name_or_path)
    ours = name.removeprefix(PREFIX)
    if ours == name and Path(name).is_file():
        return Path(name)
    known = config_files()
    below = index_folder() / 'configs' / ours
    for path in (known.get(ours.removesuffix('.py')), below, below.with_name(f'{below.name}.py')):
        if path is not None and path.is_file():
            return path
    stem = Path(ours).stem
    similar = difflib.get_close_matches(stem, known, n=3) or [
        n for n in known if stem and stem in n
    ]
    here = '' if ours != name else f'there is no such file (looked from {Path.cwd()}), and '
    hint = (
        f'did you mean {" or ".join(similar[:3])}?' if similar else f'known are {", ".join(known)}'
    )
    raise FileNotFoundError(
        f'config {name} does not exist: {here}no config of ddetr_plugin has this name; {hint}'
    )
