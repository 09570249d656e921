"""Loads the compiled operator and keeps the reason when that fails."""

import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

_REMEDY = 'pip install --no-build-isolation -e .'
_load_error: str | None = None
_warned = False


def _library_path() -> Path | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f'_C{suffix}')
        if path.exists():
            return path
    return None


def _load() -> str | None:
    """Loads the library; returns the reason when it cannot."""
    path = _library_path()
    if path is None:
        return f'ddetr_plugin.ops._C is not built (nothing beside {__file__})'
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f'{path} cannot be loaded: {error}'
    return None


def native_load_error() -> str | None:
    """Why the native operator is not in use, or None when it is."""
    return _load_error


def is_available(value) -> bool:
    """Whether the native operator handles `value`; warns once, loudly, when it is not there."""
    global _warned
    if _load_error is None:
        return True
    if not _warned:
        _warned = True
        warnings.warn(
            'ms_deform_attn runs on the slow PyTorch path, because the native operator is '
            f'missing: {_load_error}. To build it: {_REMEDY}',
            RuntimeWarning,
            stacklevel=3,
        )
    return False


_load_error = _load()
