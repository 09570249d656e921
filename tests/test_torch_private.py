"""Names that torch may change without notice are used in one guarded module only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUARDED = ROOT / 'ddetr_plugin' / 'ops' / 'torch_private.py'
SOURCES = [
    ROOT / 'setup.py',
    *sorted(path for folder in ('ddetr_plugin', 'tools') for path in (ROOT / folder).rglob('*.py')),
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
