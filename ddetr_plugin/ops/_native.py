"""Loads the compiled operator and keeps the reason when that fails."""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from ddetr_plugin.ops.torch_private import dispatch_mode_active, transforms_active

_REMEDY = 'pip install --no-build-isolation -e .'
_load_error: str | None = None
_cuda_load_error: str | None = None
_warned = False
# How many `use_reference` are open. No ContextVar, which torch.compile cannot trace.
_reference_wanted = 0
# Pictures of a job come in few sizes; making the tensors anew would cost more than small kernels.
_LEVEL_TENSORS_KEPT = 256
_level_tensors: dict = {}


def library_path(name: str) -> Path | None:
    """Where the compiled library `name` lies; None where it was not built."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f'{name}{suffix}')
        if path.exists():
            return path
    return None


def _load() -> str | None:
    """Loads the library; returns the reason when it cannot."""
    path = library_path('_C')
    if path is None:
        return f'ddetr_plugin.ops._C is not built (nothing beside {__file__})'
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f'{path} cannot be loaded: {error.__cause__ or error}'
    try:
        importlib.import_module('ddetr_plugin.ops._registration')
    except AttributeError as error:
        return f'{path} was built from other sources than the Python code around it ({error})'
    return None


def _load_cuda() -> str | None:
    """The same for the CUDA kernels, which are a library of their own."""
    if torch.version.cuda is None:
        return f'torch {torch.__version__} was built without CUDA'
    if _load_error is not None:
        return 'the native operator itself is missing'
    path = library_path('_C_cuda')
    if path is None:
        return 'the native operator was built without CUDA'
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f'{path} cannot be loaded: {error.__cause__ or error}'
    return None


def native_load_error() -> str | None:
    """Why the native operator is not in use, or None when it is."""
    return _load_error


def cuda_load_error() -> str | None:
    """Why the native operator's CUDA kernels are not in use, or None when they are."""
    return _cuda_load_error


@contextlib.contextmanager
def use_reference() -> Iterator[None]:
    """Within it, `ms_deform_attn` and `ms_deform_attn_fused` are made of torch's own operators.

    For export to what knows no others, and for comparisons. It holds for all threads of the
    process. torch.compile compiles anew for it.
    """
    global _reference_wanted
    _reference_wanted += 1
    try:
        yield
    finally:
        _reference_wanted -= 1


def has_kernels(value: torch.Tensor) -> bool:
    """Whether the native operator handles `value`."""
    device = value.device.type
    return _load_error is None and (
        device in ('cpu', 'meta') or (device == 'cuda' and _cuda_load_error is None)
    )


def is_available(value: torch.Tensor) -> bool:
    """`has_kernels`, but warns once, loudly, when it should be so and is not; see `use_reference`.

    Devices that the operator has no code for at all take the PyTorch path without a warning.
    """
    if _reference_wanted:
        return False
    if has_kernels(value):
        return True
    if not _warned:
        _warn(value.device.type)
    return False


def _warn(device: str) -> None:
    global _warned
    if _load_error is not None:
        reason = f'the native operator is missing: {_load_error}. To build it: {_REMEDY}'
    elif device == 'cuda':
        reason = (
            f'{_cuda_load_error}. To build it with CUDA: install the CUDA toolkit that torch '
            f'{torch.__version__} was made with, then FORCE_CUDA=1 {_REMEDY}'
        )
    else:
        return
    _warned = True
    warnings.warn(
        f'ms_deform_attn runs on the slow PyTorch path, because {reason}',
        RuntimeWarning,
        stacklevel=4,
    )


def level_tensors(sizes: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator's (L, 2) and (L,) tensors, on the CPU.

    Args:
        sizes: pairs of Python's integers, from `checks.plain_shapes`.
    """
    # Tracing and transforms want tensors of their own, and make some that nobody else can use.
    if torch.compiler.is_compiling() or dispatch_mode_active() or transforms_active():
        return _new_level_tensors(sizes)
    tensors = _level_tensors.get(sizes)
    if tensors is None:
        tensors = _new_level_tensors(sizes)
        if len(_level_tensors) >= _LEVEL_TENSORS_KEPT:
            _level_tensors.clear()
        _level_tensors[sizes] = tensors
    return tensors


def _new_level_tensors(sizes) -> tuple[torch.Tensor, torch.Tensor]:
    starts, start = [], 0
    for height, width in sizes:
        starts.append(start)
        start += height * width
    # Tensors of inference mode could not be saved for a later call's backward.
    with torch.inference_mode(False):
        # Not on a default device that the caller may have set.
        return (
            torch.tensor(sizes, dtype=torch.int64, device='cpu'),
            torch.tensor(starts, dtype=torch.int64, device='cpu'),
        )


_load_error = _load()
_cuda_load_error = _load_cuda()
