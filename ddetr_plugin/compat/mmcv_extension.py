"""Lets mmdet be imported where mmcv has no compiled extension (mmcv-lite).

mmdet imports ``mmcv.ops``, and that imports the compiled module ``mmcv._ext`` and looks up every
op in it, although Deformable DETR calls none of them. `install_mmcv_stand_in` places a finder
after all others on ``sys.meta_path``. Python asks it only when nobody else knows ``mmcv._ext``;
it then supplies a module in which every op exists and raises `MissingMMCVOpError` when called.
With full mmcv the real extension is found first and the finder is never reached; where that
extension is found but cannot be loaded, its own ImportError is what the user sees.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = [
    'MissingMMCVOpError',
    'has_mmcv_operators',
    'install_mmcv_stand_in',
    'require_mmcv_operators',
]

EXTENSION = 'mmcv._ext'


# Modules of mmcv.ops that compute in PyTorch where the extension is missing.
NEED_NO_EXTENSION = ('MultiScaleDeformableAttention',)


class MissingMMCVOpError(RuntimeError):
    """Something needs mmcv's compiled extension, and mmcv is installed without it."""

    def __init__(self, what):
        super().__init__(
            f'{what}, but this mmcv has no compiled extension ({EXTENSION} does not exist; '
            'mmcv-lite never has one). Install full mmcv: '
            'pip uninstall mmcv-lite; pip install mmcv==2.1.0'
        )


class _MissingOps(ModuleType):
    """A module in which every public name is an op that raises when called."""

    def __getattr__(self, name):
        # Python and tools probe modules for dunder and private names; those must stay absent.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')

        def missing_op(*args, **kwargs):
            raise MissingMMCVOpError(f'mmcv.ops needs the compiled op "{name}"')

        missing_op.__name__ = missing_op.__qualname__ = name
        return missing_op


class _StandInFinder(MetaPathFinder, Loader):
    """Finds ``mmcv._ext`` and nothing else, and only when no other finder does."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != EXTENSION:
            return None
        # Finders that were added to sys.meta_path after this one still come first.
        later_finders = sys.meta_path[sys.meta_path.index(self) + 1 :]
        for finder in later_finders:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return ModuleSpec(fullname, self, origin='ddetr_plugin stand-in')

    def create_module(self, spec):
        return _MissingOps(spec.name, __doc__)

    def exec_module(self, module):
        """Nothing to run: the attributes are made when they are asked for."""


def install_mmcv_stand_in():
    """Put the finder at the end of ``sys.meta_path``; a second call changes nothing."""
    if not any(isinstance(finder, _StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(_StandInFinder())


def has_mmcv_operators():
    """Whether mmcv has its compiled extension, and that can be loaded.

    Raises:
        ImportError: there is one, or no mmcv, but it cannot be imported.
    """
    return not isinstance(importlib.import_module(EXTENSION), _MissingOps)


def require_mmcv_operators(model):
    """Check that the modules of a model can run with the mmcv that is installed.

    Looks for modules of mmcv.ops only. An op that is called as a function, such as the NMS of
    mmdet's dense detectors, raises when it is called.

    Args:
        model: torch.nn.Module.

    Raises:
        MissingMMCVOpError: the model has modules of mmcv.ops that need the compiled extension, and
            there is none; the message names their kinds.
    """
    if not isinstance(sys.modules.get(EXTENSION), _MissingOps):
        return
    kinds = {
        kind.__name__
        for module in model.modules()
        for kind in type(module).__mro__
        if kind.__module__.startswith('mmcv.ops.') and kind.__name__ not in NEED_NO_EXTENSION
    }
    if kinds:
        raise MissingMMCVOpError(
            f"this model needs mmcv's compiled operators ({', '.join(sorted(kinds))})"
        )
