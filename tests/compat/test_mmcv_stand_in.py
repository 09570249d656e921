"""mmcv with and without its compiled extension, each in a Python of its own."""

from importlib.util import find_spec

import pytest
from forked import run_python


@pytest.fixture
def fake_mmcv(tmp_path):
    """A stand-alone package `mmcv` without `_ext`; tests add the kind of `_ext` they need."""
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    return package


def only_fake(fake_mmcv):
    """Code that lets the fake mmcv win over an installed one."""
    return f'import sys; sys.path.insert(0, {str(fake_mmcv.parent)!r});'


def test_importing_the_plugin_loads_neither_mmdet_nor_mmcv():
    code = 'import ddetr_plugin, sys; print([m for m in sys.modules if m[:4] in ("mmde", "mmcv")])'
    assert run_python(code)[:2] == (0, '[]\n')


@pytest.mark.skipif(
    find_spec('mmcv') is None or find_spec('mmcv._ext').origin != 'ddetr_plugin stand-in',
    reason='mmcv has its compiled extension here',
)
def test_mmdet_imports_without_the_extension_and_ops_say_what_to_install():
    code = """
import torch, ddetr_plugin, mmdet.models
from mmcv.ops import nms
try:
    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except RuntimeError as error:
    print(error)
"""
    status, output, errors = run_python(code)
    assert status == 0, errors
    assert '"nms"' in output
    assert 'pip uninstall mmcv-lite; pip install mmcv==2.1.0' in output


def test_without_an_extension_the_stand_in_has_every_op_but_no_private_names(fake_mmcv):
    code = only_fake(fake_mmcv) + (
        'import ddetr_plugin, importlib; ext = importlib.import_module("mmcv._ext");'
        'print(hasattr(ext, "any_op"), hasattr(ext, "__path__"), hasattr(ext, "_private"))'
    )
    assert run_python(code)[:2] == (0, 'True False False\n')


def test_a_real_extension_on_the_path_is_used_instead_of_the_stand_in(fake_mmcv):
    (fake_mmcv / '_ext.py').write_text('def nms():\n    return "real"\n')
    code = only_fake(fake_mmcv) + 'import ddetr_plugin, mmcv._ext; print(mmcv._ext.nms())'
    assert run_python(code)[:2] == (0, 'real\n')


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_real_extension_of_another_finder_is_used_instead_of_the_stand_in(fake_mmcv, when):
    (fake_mmcv / 'elsewhere').mkdir()
    (fake_mmcv / 'elsewhere' / '_ext.py').write_text('def nms():\n    return "real"\n')
    add_finder = f"""
from importlib.machinery import PathFinder
class Elsewhere:
    def find_spec(name, path=None, target=None):
        if name == 'mmcv._ext':
            return PathFinder.find_spec(name, [{str(fake_mmcv / 'elsewhere')!r}])
sys.meta_path.append(Elsewhere)
"""
    parts = [add_finder, 'import ddetr_plugin\n']
    code = ''.join(parts if when == 'before' else reversed(parts))
    code = only_fake(fake_mmcv) + '\n' + code + 'import mmcv._ext; print(mmcv._ext.nms())'
    assert run_python(code)[:2] == (0, 'real\n')


def test_an_extension_that_does_not_load_shows_its_own_error(fake_mmcv):
    (fake_mmcv / '_ext.py').write_text('raise ImportError("undefined symbol: _ZN3c10")\n')
    code = only_fake(fake_mmcv) + 'import ddetr_plugin, mmcv._ext'
    status, _, errors = run_python(code)
    assert status != 0
    assert 'ImportError: undefined symbol: _ZN3c10' in errors


def test_a_missing_mmcv_stays_missing(tmp_path):
    code = """
import sys
class Hide:
    def find_spec(name, path=None, target=None):
        if name == 'mmcv':
            raise ModuleNotFoundError("No module named 'mmcv'", name='mmcv')
sys.meta_path.insert(0, Hide)
import ddetr_plugin
import mmcv._ext
"""
    status, _, errors = run_python(code)
    assert status != 0
    assert "ModuleNotFoundError: No module named 'mmcv'" in errors


def test_the_finder_is_installed_once_however_often_it_is_asked_for():
    code = """
import sys, ddetr_plugin
from ddetr_plugin.compat import install_mmcv_stand_in
before = list(sys.meta_path)
install_mmcv_stand_in()
print(sys.meta_path == before)
"""
    assert run_python(code)[:2] == (0, 'True\n')
