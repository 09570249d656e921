"""Checkpoint files of every kind: where the weights are in them, and what else they say."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ddetr_plugin.checkpoints.bits import by_new_name, same_bits
from ddetr_plugin.checkpoints.loading import load_file
from ddetr_plugin.checkpoints.names import DIALECTS, LEVEL_EMBED
from ddetr_plugin.checkpoints.transformers_folder import read_config, weight_files

__all__ = ['Source', 'read_checkpoint', 'unwrap', 'with_config']

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
