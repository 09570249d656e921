"""Lets mmdet be imported where mmcv has no compiled extension (mmcv-lite).

mmdet imports ``mmcv.ops``, and that imports the compiled module ``mmcv._ext`` and looks up every
op in it, although Deformable DETR calls none of them. `install_mmcv_stand_in` places a finder
after all others on ``sys.meta_path``. Python asks it only when nobody else knows ``mmcv._ext``;
it then supplies a module in which every op exists and raises `MissingMMCVOpError` when called.
With full mmcv the real extension is found first and the finder is never reached; where that
extension is found but cannot be loaded, its own ImportError is what the user sees.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ['MissingMMCVOpError', 'install_mmcv_stand_in']

EXTENSION = 'mmcv._ext'


class MissingMMCVOpError(RuntimeError):
    """An op of mmcv's compiled extension was called, and mmcv is installed without it."""

    def __init__(self, op):
        super().__init__(
            f'mmcv.ops needs the compiled op "{op}", but this mmcv has no compiled extension '
            f'({EXTENSION} does not exist; mmcv-lite never has one). Install full mmcv: '
            'pip uninstall mmcv-lite; pip install mmcv==2.1.0'
        )


class _MissingOps(ModuleType):
    """A module in which every public name is an op that raises when called."""

    def __getattr__(self, name):
        # Python and tools probe modules for dunder and private names; those must stay absent.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')

        def missing_op(*args, **kwargs):
            raise MissingMMCVOpError(name)

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
