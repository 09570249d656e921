"""Puts `ms_deform_attn` under mmcv's `MultiScaleDeformableAttention`, for models made of it.

mmcv's module looks up two names of its own file in every forward: an autograd Function for GPUs
and a function for everything else. Replacing these two reaches every instance that exists or will
exist, subclasses and ``super().forward`` included, and leaves the class, its parameters, and
subclasses with a forward of their own as they are.
"""

import importlib
import inspect
import sys
import threading
import warnings
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ddetr_plugin.ops import _native
from ddetr_plugin.ops.checks import compute_dtype
from ddetr_plugin.ops.functional import ms_deform_attn

__all__ = ['replace_mmcv_op']

MODULE = 'mmcv.ops.multi_scale_deform_attn'
ATTENTION = 'MultiScaleDeformableAttention'
GPU_FUNCTION = 'MultiScaleDeformableAttnFunction'
CPU_FUNCTION = 'multi_scale_deformable_attn_pytorch'
# What the two replacements are able to stand in for.
GPU_ARGUMENTS = (
    'ctx',
    'value',
    'value_spatial_shapes',
    'value_level_start_index',
    'sampling_locations',
    'attention_weights',
    'im2col_step',
)
CPU_ARGUMENTS = ('value', 'value_spatial_shapes', 'sampling_locations', 'attention_weights')

# mmcv's two names exist once per process, so what they were does, too.
_lock = threading.Lock()
_contexts = 0
_replaced: dict = {}


@contextmanager
def replace_mmcv_op():
    """While the context lasts, mmcv's `MultiScaleDeformableAttention` computes with our operator.

    mmdet's Deformable DETR, DINO, DDQ, Mask2Former and Grounding DINO then run on it unchanged,
    in training and inference, also with mmcv-lite. ``import ddetr_plugin.accelerate`` does the
    same for good. Contexts nest and may overlap between threads: the whole process computes with
    our operator until the last one ends.

    Dtypes: the result has the dtype of `value`, so a 16-bit projection stays 16 bits wide.
    Locations and weights may have any float dtype; they are computed with in float32 (float64
    for a float64 value), never narrowed to that of `value`. mmcv narrows them on a GPU, and on a
    CPU refuses mixtures outside autocast. Under a CPU's autocast mmcv's module hands over weights
    whose softmax is in 16 bits already; under a GPU's it is in float32.

    Devices: where our operator has no kernels (no CUDA in its build, other accelerators) and
    mmcv has its compiled extension, mmcv's operator stays in use, and a warning says so.

    mmcv's forward, which still surrounds the operator, asserts on the number of tokens and so
    waits for a GPU once per call.

    Yields:
        Whether mmcv's operator is replaced. False, with a RuntimeWarning that says why, where
        mmcv is missing or is not as this function knows it; nothing is changed then.
    """
    replaced = start(stacklevel=4)
    try:
        yield replaced
    finally:
        if replaced:
            stop()


def start(stacklevel: int = 2) -> bool:
    """Enters `replace_mmcv_op` without a context; returns what that yields.

    Args:
        stacklevel: how far up the caller is whom the warning points at.
    """
    reason = _replace()
    if reason is not None:
        warnings.warn(
            f'mmcv keeps its own multi-scale deformable attention, because {reason}. Known to '
            'work: mmcv and mmcv-lite 2.1.0, onedl-mmcv 2.3.6',
            RuntimeWarning,
            stacklevel=stacklevel,
        )
    return reason is None


def stop() -> None:
    """Undoes one `start` that returned True; the last one puts back what was there."""
    global _contexts
    with _lock:
        _contexts -= 1
        if _contexts == 0:
            module = sys.modules[MODULE]
            for name, (theirs, ours) in _replaced.items():
                # Somebody else may have put something on top meanwhile; that is not ours to undo.
                if getattr(module, name, None) is ours:
                    setattr(module, name, theirs)
            _replaced.clear()


def _replace() -> str | None:
    """Counts one more context, and replaces with the first; returns the reason if it cannot."""
    global _contexts
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        return f'{MODULE} cannot be imported ({error})'
    with _lock:
        if _contexts == 0:
            reason = _unexpected(module)
            if reason is not None:
                return reason
            for name, ours in _replacements(module).items():
                _replaced[name] = (getattr(module, name), ours)
                setattr(module, name, ours)
        _contexts += 1
    return None


def _unexpected(module) -> str | None:
    """What in mmcv's module is not as the replacements need it, or None."""
    for name in (ATTENTION, GPU_FUNCTION, CPU_FUNCTION):
        if not hasattr(module, name):
            return f'{MODULE} has no {name}'
    gpu_function: Any = getattr(getattr(module, GPU_FUNCTION), 'forward', None)
    for name, function, expected in (
        (f'{GPU_FUNCTION}.forward', gpu_function, GPU_ARGUMENTS),
        (CPU_FUNCTION, getattr(module, CPU_FUNCTION), CPU_ARGUMENTS),
    ):
        try:
            arguments = tuple(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            return f'{MODULE}.{name} is not a function with a signature, but {function!r}'
        if arguments != expected:
            return f'{MODULE}.{name} takes {arguments}, expected {expected}'
    # Decorators of mmengine surround the method.
    forward = getattr(getattr(module, ATTENTION), 'forward', None)
    forward = inspect.unwrap(forward) if callable(forward) else forward
    code = getattr(forward, '__code__', None)
    for name in (GPU_FUNCTION, CPU_FUNCTION):
        if (
            code is None
            or name not in code.co_names
            or getattr(forward, '__globals__', None) is not vars(module)
        ):
            return f'{ATTENTION}.forward does not call {MODULE}.{name}'
    return None


def _replacements(module) -> dict:
    """Name -> object to put into mmcv's module in the place of what it has now."""
    their_function = getattr(module, GPU_FUNCTION)
    # What stands in for a missing extension has no file.
    compiled = getattr(sys.modules.get('mmcv._ext'), '__file__', None) is not None

    # No subclass of theirs, nor of autograd.Function: torch.compile would call its forward.
    class MSDeformAttnFunction:
        """Takes the place of mmcv's autograd Function; `im2col_step` is of no use to our op."""

        @staticmethod
        def apply(
            value,
            value_spatial_shapes,
            value_level_start_index,
            sampling_locations,
            attention_weights,
            im2col_step=None,
        ):
            if compiled and not _native.has_kernels(value):
                _warn_of_their_operator(value)
                return their_function.apply(
                    value,
                    value_spatial_shapes,
                    value_level_start_index,
                    sampling_locations,
                    attention_weights,
                    im2col_step,
                )
            return _attend(
                value,
                value_spatial_shapes,
                value_level_start_index,
                sampling_locations,
                attention_weights,
            )

    def multi_scale_deformable_attn(
        value, value_spatial_shapes, sampling_locations, attention_weights
    ):
        """Takes the place of mmcv's PyTorch implementation."""
        starts = None
        if isinstance(value_spatial_shapes, Tensor):
            # On the device of the shapes, so that no GPU is waited for.
            cells = value_spatial_shapes[:, 0] * value_spatial_shapes[:, 1]
            starts = cells.cumsum(0) - cells
        return _attend(value, value_spatial_shapes, starts, sampling_locations, attention_weights)

    return {GPU_FUNCTION: MSDeformAttnFunction, CPU_FUNCTION: multi_scale_deformable_attn}


def _attend(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
    """Our operator, for the mixtures of dtypes that mmcv's module makes."""
    dtype = compute_dtype(value)
    if isinstance(spatial_shapes, Tensor):
        spatial_shapes, level_start_index = spatial_shapes.long(), level_start_index.long()
    return ms_deform_attn(
        value,
        spatial_shapes,
        level_start_index,
        sampling_locations.to(dtype),
        attention_weights.to(dtype),
    )


def _warn_of_their_operator(value) -> None:
    warnings.warn(
        f"mmcv's own multi-scale deformable attention runs on {value.device.type}, because "
        'ddetr_plugin has no kernels for it here; "python -m ddetr_plugin.ops" shows how it was '
        'built (for CUDA: FORCE_CUDA=1 pip install --no-build-isolation -e .)',
        RuntimeWarning,
        stacklevel=4,
    )
