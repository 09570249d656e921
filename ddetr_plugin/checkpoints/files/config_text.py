"""Configs as checkpoints hold them: Python that is read, and never run."""

import ast
from typing import Any

__all__ = ['SourceText', 'is_written_out', 'model_of_config', 'read_config_text']


class SourceText(str):
    """The source of a value that a config does not write out: a variable, a call but dict()."""


def read_config_text(text: str) -> dict[str, Any]:
    """The variables of a config that `Config.pretty_text` wrote, with their values.

    Args:
        text: assignments of numbers, strings, lists, tuples and dicts, also as ``dict(...)``.

    Returns:
        Name -> value. What is anything else is its `SourceText`; tuples are lists, as JSON has
        them. Empty if the text is not Python.
    """
    try:
        return {
            target.id: _value(statement.value)
            for statement in ast.parse(text).body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return {}


def model_of_config(text: str) -> dict[str, Any]:
    """What a config assigns to `model`; empty if that is no dict, or the text is not Python."""
    model = read_config_text(text).get('model')
    return model if isinstance(model, dict) else {}


def is_written_out(value: Any) -> bool:
    """Whether a value, with all that is in it, is anything but `SourceText`."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return all(map(is_written_out, value))
    return not isinstance(value, SourceText)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        # dict(a=1), dict({'b.c': 2}) and dict(a=1, **{'b.c': 2}) are all written.
        parts = [_value(part) for part in node.args]
        parts += [_value(word.value) for word in node.keywords if word.arg is None]
        if not all(isinstance(part, dict) for part in parts):
            return SourceText(ast.unparse(node))
        named = {word.arg: _value(word.value) for word in node.keywords if word.arg is not None}
        return {key: value for part in (*parts, named) for key, value in part.items()}
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values) if key}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    try:
        # Numbers with a sign, strings, None.
        return ast.literal_eval(node)
    except ValueError:
        return SourceText(ast.unparse(node))
