"""Checkpoint files of every kind, read without running what is in them."""

import argparse
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ['Source', 'allow_official_checkpoints', 'read_checkpoint', 'unwrap', 'write_checkpoint']

# Where files keep weights, and where averages of them (EMA).
WEIGHTS = ('state_dict', 'model', 'model_state_dict')
AVERAGES = ('model_ema', 'ema', 'ema_model', 'ema_state', 'ema_state_dict', 'state_dict_ema')
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


def allow_official_checkpoints() -> None:
    """Put argparse.Namespace, the official files' command line, on torch's allow-list.

    A Namespace runs nothing when it is made. Calling it again changes nothing.
    """
    torch.serialization.add_safe_globals([(argparse.Namespace, 'argparse.Namespace')])


def read_checkpoint(path: str | Path, trust: bool = False, ema: bool = False) -> Source:
    """Read weights from a .pth, .bin or .safetensors file, or a folder as transformers saves it.

    Args:
        path: the file or folder.
        trust: let the pickle in the file run whatever it asks for.
        ema: take the average of the weights (EMA) that lies beside them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, needs more than weights and may not, has no average, or
            needs a library that is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, trust, ema)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist (looked from {Path.cwd()})')
    content = read_safetensors(path) if path.suffix == '.safetensors' else _unpickle(path, trust)
    if not isinstance(content, Mapping):
        raise ValueError(
            f'{path} holds a {type(content).__name__}, expected a dict of weights; save the '
            "model's state_dict() instead"
        )
    source = unwrap(content, ema)
    if not source.state:
        raise ValueError(
            f'{path} holds no weights; expected tensors by name, or one of {", ".join(WEIGHTS)}; '
            f'found {", ".join(map(str, list(content)[:8])) or "nothing"}'
        )
    config = path.with_name('config.json')
    if config.is_file() and 'classes' not in source.meta.get('dataset_meta', {}):
        source.meta.update(_transformers_meta(config))
    return source


def _read_folder(folder: Path, trust: bool, ema: bool) -> Source:
    index = [*folder.glob('*.safetensors.index.json'), *folder.glob('*.bin.index.json')]
    if index:
        names = sorted(set(json.loads(index[0].read_text())['weight_map'].values()))
        parts = [read_checkpoint(folder / name, trust) for name in names]
        return parts[0]._replace(state={k: v for part in parts for k, v in part.state.items()})
    files = [folder / name for name in ('model.safetensors', 'pytorch_model.bin')]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f'{folder} holds neither model.safetensors nor pytorch_model.bin; name the file itself'
        )
    return read_checkpoint(found, trust, ema)


def _transformers_meta(file: Path) -> dict:
    """Class names and dilation that transformers' config.json states."""
    try:
        config = json.loads(file.read_text())
    except ValueError:
        return {}
    if config.get('model_type') != 'deformable_detr':
        return {}
    labels = {int(k): v for k, v in (config.get('id2label') or {}).items()}
    meta = {'dilation': bool(config.get('dilation'))}
    # transformers invents LABEL_0, LABEL_1, ... where nobody named the classes; 'N/A' is a gap.
    named = [labels.get(i, 'N/A') for i in range(max(labels, default=-1) + 1)]
    if named and not any(name.startswith('LABEL_') for name in named):
        meta['row_names'] = [None if name == 'N/A' else name for name in named]
    return meta


# What torch stumbles over in files that are no checkpoints, or not whole ones.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def _unpickle(path: Path, trust: bool) -> Any:
    if trust:
        try:
            return torch.load(path, map_location='cpu', weights_only=False)
        # A pickle may raise anything, and so may what it runs.
        except Exception as error:
            raise ValueError(f'{path} cannot be loaded: {type(error).__name__}: {error}') from error
    allow_official_checkpoints()
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except UnpicklingError as error:
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (*_DAMAGED, UnpicklingError, OSError):
            names = []
        reason = ' '.join(str(error).split())
        found = re.search(r'GLOBAL (\S+)|Unsupported (?:class|global)[:\s]+(\S+)', reason)
        if not names and found:
            names = [found[1] or found[2]]
        asks = (
            f'asks to run {", ".join(sorted(names))}' if names else f'was refused: {reason[:200]}'
        )
        raise ValueError(
            f'{path} is not only weights: its pickle {asks}. Nothing was run. If you know where '
            'the file comes from, load it with --trust; otherwise leave it'
        ) from error
    # What torch stumbles over depends on the bytes that are no checkpoint.
    except _DAMAGED as error:
        raise ValueError(
            f'{path} is not a checkpoint that torch can read: {" ".join(str(error).split())[:200]}'
        ) from error


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file.

    Raises:
        ValueError: the library is missing, or the file is damaged.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(
            f'{path} needs the library safetensors: pip install safetensors'
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{path} is no readable safetensors file: {error}') from error


def unwrap(content: Mapping, ema: bool = False) -> Source:
    """Finds the weights in what a file holds.

    Raises:
        ValueError: an average is wanted and there is none.
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

    state: dict[str, Tensor] = {}
    others, averaged = [], 0
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            if weights is not content or name not in (*AVERAGES, 'meta'):
                others.append(str(name))
            continue
        name = _PREFIX.sub('', str(name))
        # mmdet's ExpMomentumEMAHook keeps averages as buffers: ema_backbone_conv1_weight.
        if name.startswith('ema_') and '.' not in name:
            averaged += 1
        elif name not in ('steps', 'n_averaged'):
            state[name] = tensor
    if averaged:
        left.append(f'{averaged} averages as buffers ema_*')
    if others:
        more = f' and {len(others) - 8} more' if len(others) > 8 else ''
        left.append(f'{", ".join(others[:8])}{more} (among the weights, but no tensors)')
    if weights is not content:
        left += [str(k) for k in content if k not in (*WEIGHTS, *AVERAGES, 'meta')]

    meta = content.get('meta') if weights is not content else None
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    return Source(state, meta, _dilation(content, meta), left)


def _dilation(content: Mapping, meta: Mapping) -> bool | None:
    args = content.get('args')
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if isinstance(args, Mapping) and 'dilation' in args:
        return bool(args['dilation'])
    config = meta.get('cfg')
    if isinstance(config, str) and 'dilations' in config:
        found = re.search(r'dilations\s*=\s*[\(\[]([^\)\]]*)', config)
        return bool(found and '2' in found[1])
    return None


def write_checkpoint(
    path: str | Path, state: Mapping[str, Tensor], dialect: str, meta: dict
) -> None:
    """Write weights as the programs of a dialect expect them.

    Args:
        path: .safetensors for 'hf' only; else any name.
        state: the weights, in that dialect's names.
        dialect: 'ddetr_plugin', 'mmdet', 'official' or 'hf'.
        meta: goes into files of 'ddetr_plugin' and 'mmdet'.

    Raises:
        ValueError: the library safetensors is missing, or the suffix does not fit the dialect.
    """
    path = Path(path)
    if path.suffix == '.safetensors' and dialect != 'hf':
        raise ValueError(f'.safetensors files are for --to hf only, got {path}; write a .pth file')
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.safetensors':
        try:
            from safetensors.torch import save_file
        except ImportError as error:
            raise ValueError(
                f'{path} needs the library safetensors: pip install safetensors; or write a .bin'
            ) from error
        # One name, one tensor: the format knows no aliases.
        save_file({k: v.clone().contiguous() for k, v in state.items()}, path, {'format': 'pt'})
    elif dialect == 'hf':
        torch.save(dict(state), path)
    elif dialect == 'official':
        torch.save({'model': dict(state)}, path)
    else:
        torch.save({'state_dict': dict(state), 'meta': meta}, path)
