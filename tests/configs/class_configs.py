"""Writes a config the way of mmengine's pure-Python configs, whose types are classes."""

import mmdet.registry
from mmengine.config import Config
from mmengine.registry import Registry


def find_class(name):
    """The class that a registry knows by a name: mmdet's own before those of what it builds on."""
    registries = [r for r in vars(mmdet.registry).values() if isinstance(r, Registry)]
    found = [kind for kind in (registry.get(name) for registry in registries) if kind is not None]
    assert found, f'no registry knows {name}'
    return min(found, key=lambda kind: not kind.__module__.startswith('mmdet.'))


def write_with_classes(source, path):
    """Writes the config file `source` to `path`, with an import for every type; returns `path`."""
    imports = set()

    def code(value):
        if isinstance(value, dict):
            return f'dict({", ".join(f"**{{{k!r}: {item(k, v)}}}" for k, v in value.items())})'
        if isinstance(value, (list, tuple)):
            inner = ', '.join(map(code, value))
            return f'[{inner}]' if isinstance(value, list) else f'({inner},)'
        return repr(value)

    def item(key, value):
        if key != 'type' or not isinstance(value, str):
            return code(value)
        kind = find_class(value)
        imports.add(f'from {kind.__module__} import {kind.__name__}')
        return kind.__name__

    content = Config.fromfile(source).to_dict()
    lines = [f'{key} = {code(value)}' for key, value in content.items()]
    path.write_text('\n'.join([*sorted(imports), *lines]) + '\n')
    return path
