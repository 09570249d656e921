"""A model's config out of the text of a config file in Python, which is read but not run."""

import ast
from typing import Any

__all__ = ['UNREADABLE', 'is_readable', 'model_of_config']

# Stands for what is not written out: a variable, a call other than dict().
UNREADABLE = type('Unreadable', (), {'__repr__': lambda self: '(not written out)'})()


def model_of_config(text: str) -> dict:
    """What a config assigns to `model`; `UNREADABLE` in it is what the text does not write out.

    Args:
        text: such as mmengine puts into its checkpoints.

    Returns:
        Numbers, words, None, and dicts, lists and tuples of them; empty if there is no model, or
        the text is no Python.
    """
    try:
        for statement in ast.parse(text).body:
            names = [t.id for t in getattr(statement, 'targets', ()) if isinstance(t, ast.Name)]
            if 'model' in names:
                model = _literal(statement.value)  # type: ignore[attr-defined]
                return model if isinstance(model, dict) else {}
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        pass
    return {}


def is_readable(value: Any) -> bool:
    """Whether a value, with all that is in it, is written out."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return value is not UNREADABLE
    return all(map(is_readable, value))


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        if node.args or any(word.arg is None for word in node.keywords):
            return UNREADABLE
        return {word.arg: _literal(word.value) for word in node.keywords}
    if isinstance(node, ast.Dict):
        return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values) if k is not None}
    if isinstance(node, ast.List):
        return [_literal(element) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(element) for element in node.elts)
    try:
        # Numbers with a sign, words, None.
        return ast.literal_eval(node)
    except ValueError:
        return UNREADABLE
