"""The number of feature levels of a detector: its config says it once, in the neck."""

import inspect
from collections.abc import Mapping
from typing import Any

from ddetr_plugin.registry import MODELS

__all__ = ['with_num_levels']


def with_num_levels(config: Mapping) -> dict:
    """A detector's config in which encoder and decoder have the number of levels of the neck.

    Args:
        config: our detector's, or `neck`, `encoder` and `decoder` of it. The neck says how many
            maps it makes with `num_outs`, as mmdet's necks call it, or with one of `scales` each,
            as `SimpleFeaturePyramid`.

    Returns:
        A copy. In encoder and decoder, every module that takes `num_levels` and does not state it
        has that number; what is stated stays as it is. Where the neck's config says no number,
        nothing is added.
    """
    neck = config['neck']
    num_levels = neck.get('num_outs', len(neck.get('scales', ())) or None)
    if num_levels is None:
        return dict(config)
    parts = {name: _complete(config[name], num_levels) for name in ('encoder', 'decoder')}
    return {**config, **parts}


def _complete(value: Any, num_levels: int) -> Any:
    kind = type(value)
    if isinstance(value, list | tuple):
        return kind(_complete(item, num_levels) for item in value)
    if not isinstance(value, Mapping):
        return value
    completed = {key: _complete(item, num_levels) for key, item in value.items()}
    if 'num_levels' not in completed and _takes_num_levels(value):
        completed['num_levels'] = num_levels
    return kind(completed)


def _takes_num_levels(config: Mapping) -> bool:
    """Whether what `MODELS.build` makes of a config has an argument of this name."""
    kind = config.get('type')
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(config.get('_scope_')) as registry:
            kind = registry.get(kind)
    return kind is not None and 'num_levels' in inspect.signature(kind).parameters
