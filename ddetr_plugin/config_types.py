"""What the `type` of a config says, whichever way it is written.

A config names its type by a registered name with or without a scope ('AdamW', 'mmdet.Resize'), by
the path of an import ('torch.optim.AdamW', as mmengine writes its pure-Python configs to a file),
or is the class itself (as such a config is in memory).
"""

from collections.abc import Mapping
from typing import Any

__all__ = ['has_type', 'type_class', 'type_name']


def type_name(config: Mapping, default: str = '') -> str:
    """The last part of the name of a config's type, such as 'Resize'; `default` without one."""
    kind = config.get('type')
    if kind is None:
        return default
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    return name.rpartition('.')[2]


def has_type(config: Mapping, *names: str) -> bool:
    """Whether a config's type has one of `names`, which are without scopes."""
    return type_name(config) in names


def type_class(config: Mapping, registry) -> type[Any] | None:
    """The class of a config's type; None if the mmengine `registry` does not know its name."""
    kind = config.get('type')
    return registry.get(kind) if isinstance(kind, str) else kind
