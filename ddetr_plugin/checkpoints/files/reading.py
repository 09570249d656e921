"""Checkpoint files of every kind: where the weights are in them, and what else they say."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ddetr_plugin.checkpoints.files.safe_loading import CheckpointFileError, load_file
from ddetr_plugin.checkpoints.files.transformers_folder import read_config, weight_files
from ddetr_plugin.checkpoints.names.mmdet_2 import is_mmdet_2, mmdet_3_config, mmdet_3_name
from ddetr_plugin.checkpoints.names.prefixes import bare_names, pick_model
from ddetr_plugin.checkpoints.names.table import DIALECTS, LEVEL_EMBED
from ddetr_plugin.checkpoints.same_bits import by_new_name, same_bits

__all__ = ['Source', 'read_checkpoint', 'unwrap', 'with_config']

# Where files keep weights, and where averages of them (EMA).
WEIGHTS = ('state_dict', 'model', 'model_state_dict', 'module')
AVERAGES = ('model_ema', 'ema', 'ema_model', 'ema_state', 'ema_state_dict', 'state_dict_ema')
_OF_TRANSFORMERS = LEVEL_EMBED[1 + DIALECTS.index('transformers')]


class Source(NamedTuple):
    """What a file holds.

    Attributes:
        state: the weights; prefixes are stripped, and names of mmdet 2.x are those of mmdet 3.
        meta: the Runner's meta data, or an empty dict; with the `args` of the official release's
            training, if the file has them.
        dilated: whether the file says that the backbone is dilated (DC5); None if it says nothing.
        not_converted: what else is in the file, in words.
        notes: what was stripped or renamed, in words.
    """

    state: dict[str, Tensor]
    meta: dict
    dilated: bool | None
    not_converted: list[str]
    notes: Sequence[str] = ()


def read_checkpoint(path: str | os.PathLike, trust: bool = False, ema: bool = False) -> Source:
    """Read weights from a .pth, .bin or .safetensors file, or a folder as transformers saves it.

    Args:
        path: the file or folder, or the index (.json) of weights in several files.
        trust: let the pickle in the file run whatever it asks for.
        ema: take the average of the weights (EMA) that lies beside them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, needs more than weights and may not, has no average, or
            needs a library that is not installed; or a name occurs twice, with different numbers.
    """
    path = Path(path)
    files = weight_files(path)
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
    """Finds the weights in what a file holds, and gives them the names of their dialect.

    Raises:
        ValueError: an average is wanted and there is none; or there is nothing else; or there are
            several models; or two names that differ by a prefix hold different numbers.
    """
    weights, left, is_average = _weights(content, ema)
    tensors, others, averaged = {}, [], 0
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            if weights is not content or name not in (*AVERAGES, 'meta'):
                others.append(str(name))
        else:
            tensors[str(name)] = tensor
    bare, notes = bare_names(tensors)
    for old, name in list(bare.items()):
        # mmdet's ExpMomentumEMAHook keeps averages as buffers: ema_backbone_conv1_weight.
        if name.startswith('ema_') and '.' not in name:
            averaged += 1
        elif name not in ('steps', 'n_averaged'):
            continue
        del bare[old]
    if averaged:
        left.append(f'{averaged} averages as buffers ema_*')
    if others:
        more = f' and {len(others) - 8} more' if len(others) > 8 else ''
        left.append(f'{", ".join(others[:8])}{more} (among the weights, but no tensors)')
    if weights is not content:
        left += [str(k) for k in content if k not in (*WEIGHTS, *AVERAGES, 'meta')]

    meta = content.get('meta') if weights is not content else None
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    args = _command_line(content)
    if args:
        meta.setdefault('args', args)
    picked, stripped, beside = pick_model(bare.values(), ema and not is_average)
    new = {old: picked[name] for old, name in bare.items() if name in picked}
    notes += stripped
    left += beside
    if is_mmdet_2(new.values()):
        new = {old: mmdet_3_name(name) for old, name in new.items()}
        notes.append('the names of mmdet 2.x became those of mmdet 3')
        config = mmdet_3_config(str(meta.get('config')))
        if config is not None:
            meta.setdefault('cfg', config)
    state = by_new_name((name, old, tensors[old]) for old, name in new.items())
    return Source(state, meta, _dilation(content, meta), left, notes)


def _weights(content: Mapping, ema: bool) -> tuple[Mapping, list[str], bool]:
    """The weights in a file, or their average; what else there is of the two; is it the average?"""
    weights: Any = content
    for key in WEIGHTS:
        if isinstance(content.get(key), Mapping):
            weights = content[key]
            break
    averages = [key for key in AVERAGES if isinstance(content.get(key), Mapping)]
    # A Runner exchanges the two: its state_dict is the average already.
    if 'ema_state_dict' in averages and 'state_dict' in content:
        left = "ema_state_dict (the Runner's state_dict is the average already)"
        return weights, [left], True
    if not averages:
        return weights, [], False
    if ema:
        average = content[averages[0]]
        nested = [average[key] for key in WEIGHTS if isinstance(average.get(key), Mapping)]
        return (nested or [average])[0], [], True
    if not any(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise CheckpointFileError(
            f'there are no weights in the file but their average (EMA), {averages[0]}; '
            'tools/convert_checkpoint.py --ema takes that'
        )
    return weights, [f'{averages[0]} (an average of the weights; --ema takes it instead)'], False


def _command_line(content: Mapping) -> dict[str, Any]:
    """What the official release's files hold of their training's command line, in plain values."""
    args = content.get('args')
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if not isinstance(args, Mapping):
        return {}
    return {k: v for k, v in args.items() if isinstance(v, bool | int | float | str)}


def _dilation(content: Mapping, meta: Mapping) -> bool | None:
    args = meta.get('args')
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
