"""One file's content, read without running what is in it."""

import re
import struct
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ddetr_plugin.compat.safe_globals import allow_official_checkpoints

__all__ = ['CheckpointFileError', 'load_file']


class CheckpointFileError(ValueError):
    """A file that is no checkpoint, or one that asks to run something."""


def load_file(path: Path, trust: bool = False, map_location: Any = 'cpu') -> Any:
    """What is in a .safetensors file, or what torch saved in any other.

    Args:
        path: the file.
        trust: let the pickle in the file run whatever it asks for.
        map_location: where tensors go, as for ``torch.load``; safetensors stay on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointFileError: it is no checkpoint, or asks for more than weights and may not.
        ValueError: it needs a library that is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist (looked from {Path.cwd()})')
    return (
        _safetensors(path)
        if path.suffix == '.safetensors'
        else _unpickle(path, trust, map_location)
    )


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


def _unpickle(path: Path, trust: bool, map_location: Any) -> Any:
    if trust:
        try:
            return torch.load(path, map_location=map_location, weights_only=False)
        except ImportError as error:
            raise ValueError(
                f'{path} holds objects of the module {error.name}, which is not installed; install '
                'it, or save the weights alone where it is'
            ) from error
        # A pickle may raise anything, and so may what it runs.
        except Exception as error:
            raise ValueError(f'{path} cannot be loaded: {type(error).__name__}: {error}') from error
    allow_official_checkpoints()
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (*_DAMAGED, UnpicklingError, OSError):
            names = []
        reason = _reason(error)
        found = re.search(r'GLOBAL (\S+)|Unsupported (?:class|global)[:\s]+(\S+)', reason)
        if not names and found:
            names = [found[1] or found[2]]
        asks = (
            f'asks to run {", ".join(sorted(names))}' if names else f'was refused: {reason[:200]}'
        )
        raise CheckpointFileError(
            f'{path} is not only weights: its pickle {asks}. Nothing was run. If you know where '
            'the file comes from, tools/convert_checkpoint.py --trust makes a file of its weights '
            'alone; otherwise leave it'
        ) from error
    # What torch stumbles over depends on the bytes that are no checkpoint.
    except _DAMAGED as error:
        raise CheckpointFileError(
            f'{path} is not a checkpoint that torch can read: {_reason(error)[:200]}'
        ) from error


def _reason(error: Exception) -> str:
    """What torch says on one line, without its advice to switch the safety off."""
    text = ' '.join(str(error).split())
    found = re.search(r'WeightsUnpickler error: (.*?)(?: Check the documentation|$)', text)
    return found[1] if found else text


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load
    except ImportError as error:
        raise ValueError(
            f'{path} needs the library safetensors: pip install safetensors'
        ) from error
    try:
        return load(path)
    except SafetensorError as error:
        raise ValueError(f'{path} is no readable safetensors file: {error}') from error
