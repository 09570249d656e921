"""What waits for a module happens once, when it is there, and is no hindrance before."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from ddetr_plugin.compat.after_import import after_import

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that is not imported yet."""
    (tmp_path / 'awaited_module.py').write_text('value = 7\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path])
    yield 'awaited_module'
    sys.modules.pop('awaited_module', None)


def test_it_happens_once_after_the_import(module):
    seen = []
    after_import(module, lambda: seen.append(sys.modules[module].value))
    assert importlib.util.find_spec(module) is not None and seen == []
    assert importlib.import_module(module).value == 7 and seen == [7]
    importlib.reload(sys.modules[module])
    assert seen == [7]
    after_import(module, lambda: seen.append('at once'))
    assert seen == [7, 'at once']


def test_several_may_wait_for_one_module(module):
    seen = []
    for number in range(3):
        after_import(module, lambda number=number: seen.append(number))
    importlib.import_module(module)
    assert sorted(seen) == [0, 1, 2]


def test_an_import_that_fails_may_be_tried_again(module, tmp_path):
    seen = []
    after_import(module, lambda: seen.append(1))
    source = tmp_path / 'awaited_module.py'
    source.write_text('raise OSError\n')
    with pytest.raises(OSError):
        importlib.import_module(module)
    assert seen == []
    source.write_text('value = 8  # of another length\n')
    importlib.invalidate_caches()
    assert importlib.import_module(module).value == 8 and seen == [1]


def test_a_module_that_does_not_exist_stays_absent(monkeypatch):
    monkeypatch.setattr(sys, 'meta_path', [*sys.meta_path])
    after_import('no_such_module_here', lambda: None)
    assert importlib.util.find_spec('no_such_module_here') is None


def test_torch_loads_checkpoints_of_runners_though_it_was_imported_later(tmp_path):
    code = (
        'import sys, ddetr_plugin\n'
        'print("torch" in sys.modules)\n'
        'import torch\n'
        'from mmengine.logging import HistoryBuffer\n'
        'torch.save(dict(history=HistoryBuffer([1.0], [1])), sys.argv[1])\n'
        'print(type(torch.load(sys.argv[1], weights_only=True)["history"]).__name__)\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, str(tmp_path / 'file.pth')],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ['False', 'HistoryBuffer'], done.stderr
