"""Overrides of a config that would have no effect, because nothing reads what they change.

A config file's variables are values of the config, too, but were used while it was read:
``max_iters=100`` changes a name, not the loop that was made with it.
"""

import inspect
from collections.abc import Iterable, Mapping

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

__all__ = ['find_key', 'refuse_unread']

SHOWN = 5  # places that a message names
# What a Runner and this package read of a config; everything else is a variable of the file.
READ = (
    {*inspect.signature(Runner.__init__).parameters}
    | {*inspect.signature(FlexibleRunner.__init__).parameters}
    | {
        'activation_checkpointing',
        'efficient_conv_bn_eval',
        'find_unused_parameters',
        'metainfo',
        'model_wrapper_cfg',
        'runner_type',
        'sync_bn',
    }
) - {'self', 'cfg'}


def refuse_unread(
    config: Config, overrides: Iterable[str], options: Mapping[str, str] | None = None
) -> None:
    """Raises ValueError where an override is one that nothing reads; the message says what to set.

    Args:
        config: with the overrides in it.
        overrides: dotted keys.
        options: what to do instead of overriding a key that the caller sets by itself.
    """
    if 'runner_type' in config:  # It may read whatever it likes.
        return
    options = options or {}
    for key in overrides:
        first, _, rest = key.partition('.')
        if first in READ and first not in options:
            continue
        advice = options.get(first)
        if advice is None:
            places = [] if rest else find_key(config.to_dict(), first)
            more = ', ...' if len(places) > SHOWN else ''
            advice = f'set it where it is used: {", ".join(places[:SHOWN])}{more}'
            if not places:
                advice = f'what is read is {", ".join(sorted(READ - set(options)))}'
        raise ValueError(f'--cfg-options {key} would have no effect, as nothing reads it; {advice}')


def find_key(value, name: str, path: str = '') -> list[str]:
    """The dotted paths of a key that occurs below the parts of a config that are read."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return []
    found = []
    for key, child in value.items():
        if path or key in READ:
            here = f'{path}.{key}' if path else str(key)
            found += [here] * (key == name) + find_key(child, name, here)
    return found
