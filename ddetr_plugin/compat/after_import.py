"""Something to do as soon as a module has been imported, however much later that is.

Importing torch takes seconds, which `ddetr --help` has no use for.
"""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder

__all__ = ['after_import']


def after_import(name: str, action: Callable[[], None]) -> None:
    """Call `action` once the module `name` has been imported; now, if it has been already.

    Args:
        name: of a top-level module, such as 'torch'.
        action: takes nothing.
    """
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _AfterImport(name, action))


class _AfterImport(MetaPathFinder):
    """Lets the other finders find a module, and has its loader call `action` in the end."""

    def __init__(self, name: str, action: Callable[[], None]):
        self.name = name
        self.action = action

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        execute = spec.loader.exec_module

        def execute_and_act(module):
            execute(module)
            # Not before: some only ask where the module is.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self.action()

        spec.loader.exec_module = execute_and_act
        return spec
