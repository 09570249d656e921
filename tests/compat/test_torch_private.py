"""Names that torch may change without notice are used in one guarded module only."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ddetr_plugin.ops import ms_deform_attn, torch_private

ROOT = Path(__file__).resolve().parents[2]
GUARDED = ROOT / 'ddetr_plugin' / 'ops' / 'torch_private.py'
SOURCES = [
    ROOT / 'setup.py',
    *sorted(
        path
        for folder in ('ddetr_plugin', 'tools', 'benchmarks')
        for path in (ROOT / folder).rglob('*.py')
    ),
]


def dotted(node, names) -> str | None:
    """The full name that an expression such as `nnf.relu` stands for; None where it is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, names)
        return inner and f'{inner}.{node.attr}'
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ('getattr', 'hasattr', 'setattr')
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
    ):
        inner = dotted(node.args[0], names)
        return inner and f'{inner}.{node.args[1].value}'
    return None


def imported(tree) -> dict:
    """What each imported name of a file stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split('.')[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f'{node.module}.{alias.name}'
    return names


def is_private(name: str) -> bool:
    top, *rest = name.split('.')
    return top == 'torch' and any(
        part.startswith('_') and not part.startswith('__') for part in rest
    )


def private_names(source: str) -> set:
    """The private names of torch that a file imports, reads or sets."""
    tree = ast.parse(source)
    names = imported(tree)
    found = set(names.values()) | {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    found |= {dotted(node, names) or '' for node in ast.walk(tree)}
    return {name for name in found if is_private(name)}


@pytest.mark.parametrize(
    'source, name',
    [
        ('import torch\ntorch._C._log()', 'torch._C._log'),
        ('import torch._dynamo', 'torch._dynamo'),
        ('import torch._dynamo as compiler', 'torch._dynamo'),
        ('from torch._subclasses import fake_tensor', 'torch._subclasses.fake_tensor'),
        ('from torch.utils import _pytree as tree', 'torch.utils._pytree'),
        ('import torch.nn.functional as f\nf._pad(x)', 'torch.nn.functional._pad'),
        (
            'from torch.autograd import forward_ad as ad\nad._level',
            'torch.autograd.forward_ad._level',
        ),
        ("import torch\ngetattr(torch, '_check')", 'torch._check'),
    ],
)
def test_each_way_to_a_private_name_is_seen(source, name):
    assert name in private_names(source)


@pytest.mark.parametrize(
    'source',
    [
        'import torch\ntorch.__version__, torch.nn.functional.relu(x)._base',
        'import numpy\nnumpy._core',
        'import torch\nself._torch = torch.zeros(2)',
    ],
)
def test_public_names_and_those_of_other_libraries_are_not_meant(source):
    assert not private_names(source)


def test_only_the_guarded_module_uses_private_names_of_torch():
    assert private_names(GUARDED.read_text())
    found = {
        str(path.relative_to(ROOT)): sorted(private_names(path.read_text()))
        for path in SOURCES
        if path != GUARDED and private_names(path.read_text())
    }
    assert not found


def test_without_a_name_the_operator_is_slower_and_not_wrong(monkeypatch):
    locations, weights = torch.rand(1, 3, 1, 2, 2, 2), torch.rand(1, 3, 1, 2, 2)

    def results():
        value = torch.arange(7.0).view(1, 7, 1, 1).requires_grad_()

        def output(value):
            return ms_deform_attn(value, ((2, 2), (1, 3)), None, locations, weights)

        (gradient,) = torch.autograd.grad(output(value).square().sum(), value)
        other = torch.func.grad(lambda value: output(value).square().sum())(value)
        return [output(value), gradient, other]

    expected = results()
    bare = SimpleNamespace(_C=SimpleNamespace(), utils=SimpleNamespace())
    monkeypatch.setattr(torch_private, 'torch', bare)
    assert torch_private.transforms_active() and torch_private.dispatch_mode_active()
    assert torch_private.is_transformed(locations)
    for found, wanted in zip(results(), expected, strict=True):
        assert torch.equal(found, wanted)


def test_without_a_name_checks_and_copies_do_the_same(monkeypatch):
    monkeypatch.setattr(torch_private, 'torch', SimpleNamespace())
    torch_private.check(True, lambda: 'wrong')
    with pytest.raises(RuntimeError, match='wrong'):
        torch_private.check(False, lambda: 'wrong')
    targets = [torch.zeros(2), torch.zeros(3)]
    torch_private.copy_all(targets, [torch.ones(2), torch.ones(3)])
    assert torch.cat(targets).tolist() == [1] * 5


def test_a_name_that_only_tools_need_is_missed_by_name():
    assert torch_private.lookup('torch.utils._pytree.tree_map_only')
    with pytest.raises(ImportError, match=r'torch \S+ has no torch\._gone\.thing'):
        torch_private.lookup('torch._gone.thing')
