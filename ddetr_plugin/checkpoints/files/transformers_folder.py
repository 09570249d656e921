"""What lies in a folder that transformers' save_pretrained wrote, and in its config.json."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddetr_plugin.checkpoints.files.safe_loading import CheckpointFileError
from ddetr_plugin.checkpoints.files.stated_settings import transformers_settings

__all__ = ['read_config', 'weight_files']

_MAX_ROWS = 100_000  # a number beyond is no row of a class head
_PART = re.compile(r'-(\d{5})-of-(\d{5})\.(safetensors|bin)$')


def weight_files(path: Path) -> list[Path]:
    """The files of the weights; in a folder, the first that transformers would look for.

    Args:
        path: a file, the index of several, or a folder.

    Raises:
        FileNotFoundError: the folder holds none.
        CheckpointFileError: `path` is one of several files of the same weights.
        ValueError: the index of several files is damaged.
    """
    if path.suffix == '.json' and path.is_file():
        return _indexed(path)
    if not path.is_dir():
        _refuse_part(path)
        return [path]
    for single in ('model.safetensors', 'pytorch_model.bin'):
        if (path / single).is_file():
            return [path / single]
        index = path / f'{single}.index.json'
        if index.is_file():
            return _indexed(index)
    if any(_PART.search(file.name) for file in path.iterdir()):
        raise FileNotFoundError(
            f'{path} holds the weights in several files, but not their index, such as '
            'model.safetensors.index.json; copy that too'
        )
    raise FileNotFoundError(
        f'{path} holds neither model.safetensors nor pytorch_model.bin; name the file itself'
    )


def _refuse_part(file: Path) -> None:
    part = _PART.search(file.name)
    if part and int(part[2]) > 1:
        raise CheckpointFileError(
            f'{file} is one of {int(part[2])} files that hold the weights together; name their '
            f'folder {file.parent}, or the index (.json) that lies there'
        )


def _indexed(index: Path) -> list[Path]:
    content = _json(index)
    places = content.get('weight_map') if isinstance(content, Mapping) else None
    if not isinstance(places, Mapping) or not places:
        raise ValueError(
            f'{index} names no files: expected an object with a weight_map from tensors to files; '
            'copy the folder again, or name the folder or a file of weights itself'
        )
    names = sorted({str(name) for name in places.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ValueError(f'{index} names files outside its folder: {", ".join(outside)}')
    return [index.with_name(name) for name in names]


def read_config(file: Path) -> tuple[list[str | None] | None, bool | None, dict[str, int]]:
    """What a config.json says.

    Returns:
        The name of each class row, None for a row of no class, or None if it names none; whether
        the backbone is dilated; and other settings, as in `file_settings`. None, None and nothing
        if it is of another model.

    Raises:
        ValueError: it is damaged.
    """
    config = _json(file)
    if not isinstance(config, Mapping):
        raise _damaged(file, f'an object, got a {type(config).__name__}')
    if config.get('model_type') != 'deformable_detr':
        return None, None, {}
    labels = config.get('id2label') or {}
    try:
        labels = {int(row): str(name) for row, name in labels.items()}
    except (AttributeError, TypeError, ValueError):
        labels = {-1: ''}
    if not all(0 <= row < _MAX_ROWS for row in labels):
        raise _damaged(file, 'id2label to be an object with a name for each row number')
    backbone = config.get('backbone_config') or {}
    if not isinstance(backbone, Mapping):
        raise _damaged(file, 'backbone_config to be an object')
    return _row_names(labels), _dilated(config, backbone), transformers_settings(config)


def _damaged(file: Path, wanted: str) -> ValueError:
    return ValueError(
        f'{file} is no config of transformers, expected {wanted}; repair it or take it away'
    )


def _row_names(labels: Mapping[int, str]) -> list[str | None] | None:
    # 'N/A' is a gap. transformers invents LABEL_0, LABEL_1, ... where nobody named the classes.
    names = [labels.get(row, 'N/A') for row in range(max(labels, default=-1) + 1)]
    if not names or any(name.startswith('LABEL_') for name in names):
        return None
    return [None if name == 'N/A' else name for name in names]


def _dilated(config: Mapping, backbone: Mapping) -> bool:
    """Only backbones of timm can be dilated; older configs say nothing of the backbone's kind."""
    if 'output_stride' in backbone:
        return backbone['output_stride'] in (8, 16)
    kind = backbone.get('model_type', 'timm_backbone')
    of_timm = kind == 'timm_backbone' and config.get('use_timm_backbone', True)
    return bool(config.get('dilation') and of_timm)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{file} is damaged, expected JSON: {error}') from error
