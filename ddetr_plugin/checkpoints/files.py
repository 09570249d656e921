"""Checkpoint files of every kind: where the weights are in them, and what else they say."""

import argparse
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddetr_plugin.checkpoints.bits import by_new_name, same_bits
from ddetr_plugin.checkpoints.loading import load_file
from ddetr_plugin.checkpoints.names import DIALECTS, LEVEL_EMBED
from ddetr_plugin.checkpoints.transformers_folder import read_config, weight_files

__all__ = [
    'Source',
    'check_destination',
    'read_checkpoint',
    'unwrap',
    'with_config',
    'write_checkpoint',
]

# Where files keep weights, and where averages of them (EMA).
WEIGHTS = ('state_dict', 'model', 'model_state_dict')
AVERAGES = ('model_ema', 'ema', 'ema_model', 'ema_state', 'ema_state_dict', 'state_dict_ema')
_OF_TRANSFORMERS = LEVEL_EMBED[1 + DIALECTS.index('hf')]
_PREFIX = re.compile(r'^(module\.|_orig_mod\.)+')


class Source(NamedTuple):
    """What a file holds.

    Attributes:
        state: the weights; prefixes of wrappers are removed.
        meta: the Runner's meta data, or an empty dict.
        dilated: whether the file says that the backbone is dilated (DC5); None if it says nothing.
        left: what else is in the file, in words.
    """

    state: dict[str, Tensor]
    meta: dict
    dilated: bool | None
    left: list[str]


def read_checkpoint(path: str | Path, trust: bool = False, ema: bool = False) -> Source:
    """Read weights from a .pth, .bin or .safetensors file, or a folder as transformers saves it.

    Args:
        path: the file or folder.
        trust: let the pickle in the file run whatever it asks for.
        ema: take the average of the weights (EMA) that lies beside them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, needs more than weights and may not, has no average, or
            needs a library that is not installed; or a name occurs twice, with different numbers.
    """
    path = Path(path)
    files = weight_files(path) if path.is_dir() else [path]
    content: dict = {}
    for file in files:
        part = load_file(file, trust)
        if not isinstance(part, Mapping):
            raise ValueError(
                f'{file} holds a {type(part).__name__}, expected a dict of weights; save the '
                "model's state_dict() instead"
            )
        for name in content.keys() & part.keys():
            pair = content[name], part[name]
            if not (all(isinstance(value, Tensor) for value in pair) and same_bits(*pair)):
                raise ValueError(
                    f'{name} is in {file.name} and in another file of {path}, and differs; copy '
                    'the folder again'
                )
        content.update(part)
    source = unwrap(content, ema)
    # Tensors on no device have names and shapes only.
    if all(tensor.is_meta for tensor in source.state.values()):
        raise ValueError(
            f'{path} holds no weights; expected tensors by name, or one of {", ".join(WEIGHTS)}; '
            f'found {", ".join(map(str, list(content)[:8])) or "nothing"}'
        )
    return with_config(source, files[0].with_name('config.json'))


def with_config(source: Source, config: Path) -> Source:
    """`source` with what transformers' config.json beside it says, if it is of transformers.

    Args:
        source: a file of any dialect.
        config: the path, which need not exist.

    Raises:
        ValueError: the config is damaged.
    """
    if _OF_TRANSFORMERS not in source.state or not config.is_file():
        return source
    row_names, dilated, settings = read_config(config)
    meta = dict(source.meta)
    if settings:
        meta['settings'] = settings
    if row_names is not None:
        meta.setdefault('row_names', row_names)
    return source._replace(meta=meta, dilated=dilated if source.dilated is None else source.dilated)


def unwrap(content: Mapping, ema: bool = False) -> Source:
    """Finds the weights in what a file holds.

    Raises:
        ValueError: an average is wanted and there is none; or two names that differ by the prefix
            of a wrapper hold different numbers.
    """
    left = []
    weights: Any = content
    for key in WEIGHTS:
        if isinstance(content.get(key), Mapping):
            weights = content[key]
            break
    averages = [key for key in AVERAGES if isinstance(content.get(key), Mapping)]
    # A Runner exchanges the two: its state_dict is the average already.
    if 'ema_state_dict' in averages and 'state_dict' in content:
        averages.remove('ema_state_dict')
        left.append("ema_state_dict (the Runner's state_dict is the average already)")
    elif ema:
        if not averages:
            raise ValueError(
                f'there is no average of the weights (EMA) in the file, expected one of '
                f'{", ".join(AVERAGES)}; leave --ema out'
            )
        weights = content[averages[0]]
        weights = next(
            (weights[k] for k in WEIGHTS if isinstance(weights.get(k), Mapping)), weights
        )
    elif averages:
        left.append(f'{averages[0]} (an average of the weights; --ema takes it instead)')

    found: list[tuple[str, str, Tensor]] = []
    others, averaged = [], 0
    for old, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            if weights is not content or old not in (*AVERAGES, 'meta'):
                others.append(str(old))
            continue
        name = _PREFIX.sub('', str(old))
        # mmdet's ExpMomentumEMAHook keeps averages as buffers: ema_backbone_conv1_weight.
        if name.startswith('ema_') and '.' not in name:
            averaged += 1
        elif name not in ('steps', 'n_averaged'):
            found.append((name, str(old), tensor))
    if averaged:
        left.append(f'{averaged} averages as buffers ema_*')
    if others:
        more = f' and {len(others) - 8} more' if len(others) > 8 else ''
        left.append(f'{", ".join(others[:8])}{more} (among the weights, but no tensors)')
    if weights is not content:
        left += [str(k) for k in content if k not in (*WEIGHTS, *AVERAGES, 'meta')]

    meta = content.get('meta') if weights is not content else None
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    return Source(by_new_name(found), meta, _dilation(content, meta), left)


def _dilation(content: Mapping, meta: Mapping) -> bool | None:
    args = content.get('args')
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if isinstance(args, Mapping) and 'dilation' in args:
        return bool(args['dilation'])
    if isinstance(meta.get('dilation'), bool):
        return meta['dilation']
    config = meta.get('cfg')
    if not isinstance(config, str):
        return None
    found = re.search(r'dilations\s*=\s*[\(\[]([^\)\]]*)', config)
    if found:
        return any(number.strip() not in ('1', '') for number in found[1].split(','))
    # A ResNet is not dilated unless its config says so.
    return False if re.search(r"type='(mmdet\.)?ResNet'", config) else None


def check_destination(path: str | Path, dialect: str, source: str | Path | None = None) -> None:
    """Refuse a file that cannot be written, or must not, before anything is converted.

    Args:
        path: the file to write.
        dialect: what is to read it.
        source: the file or folder that the weights come from, if any.

    Raises:
        OSError: nothing can be written there.
        ValueError: it is a folder or a device, or the source itself, or its suffix does not fit
            the dialect.
    """
    path = Path(path)
    if path.is_dir():
        example = 'model.safetensors' if dialect == 'hf' else f'{dialect}.pth'
        raise ValueError(f'{path} is a folder; name the file to write, such as {path / example}')
    if path.exists() and not path.is_file():
        raise ValueError(f'{path} is no regular file; name a file to write')
    if path.suffix == '.safetensors' and dialect != 'hf':
        raise ValueError(f'.safetensors files are for --to hf only, got {path}; write a .pth file')
    both = source is not None and path.exists() and Path(source).exists()
    if both and (path.samefile(source) or path.parent.samefile(source)):
        raise ValueError(f'{path} belongs to the weights to convert; write to another file')
    _require_writable(path)


def _require_writable(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError('the file that is there is read-only')
        # Permissions alone do not tell, for instance of a file system that is read-only.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f'{path} cannot be written: {error}; name another file') from error


def write_checkpoint(
    path: str | Path, state: Mapping[str, Tensor], dialect: str, meta: dict
) -> None:
    """Write weights as the programs of a dialect expect them.

    Args:
        path: .safetensors for 'hf' only; else any name.
        state: the weights, in that dialect's names.
        dialect: 'ddetr_plugin', 'mmdet', 'official' or 'hf'.
        meta: goes into files of 'ddetr_plugin' and 'mmdet'; its `dilation` also into 'official'.

    Raises:
        OSError: it cannot be written, for instance because the disk is full; a file that was there
            before is as it was.
        ValueError: the library safetensors is missing, or as for `check_destination`.
    """
    check_destination(path, dialect)
    # Through a link, not over it.
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.ddetr-{os.getpid()}{path.suffix}')
    try:
        _save(part, state, dialect, meta)
        part.replace(path)
    # torch reports a full disk so.
    except (OSError, RuntimeError) as error:
        raise OSError(f'{path} cannot be written: {error}') from error
    finally:
        part.unlink(missing_ok=True)


def _save(path: Path, state: Mapping[str, Tensor], dialect: str, meta: dict) -> None:
    if path.suffix == '.safetensors':
        try:
            from safetensors import SafetensorError
            from safetensors.torch import save_file
        except ImportError as error:
            raise ValueError(
                f'{path} needs the library safetensors: pip install safetensors; or write a .bin'
            ) from error
        # One name, one tensor: the format knows no aliases.
        tensors = {k: v.clone().contiguous() for k, v in state.items()}
        try:
            save_file(tensors, path, {'format': 'pt'})
        except SafetensorError as error:
            raise OSError(str(error)) from error
    elif dialect == 'hf':
        torch.save(dict(state), path)
    elif dialect == 'official':
        said = {k: meta[k] for k in ('dilation',) if k in meta}
        args = {'args': argparse.Namespace(**said)} if said else {}
        torch.save({'model': dict(state), **args}, path)
    else:
        torch.save({'state_dict': dict(state), 'meta': meta}, path)
