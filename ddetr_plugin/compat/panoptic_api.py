"""Says how to install panopticapi where a config needs it, before anything is built."""

from collections.abc import Iterator, Mapping, Sequence

from ddetr_plugin.config_types import type_name

__all__ = ['MissingPanopticAPIError', 'require_panopticapi']

# Of mmdet; each raises on its own when it is built, in the middle of a training.
NEED_PANOPTICAPI = ('CocoPanopticMetric', 'LoadPanopticAnnotations')


class MissingPanopticAPIError(RuntimeError):
    """A config names what needs panopticapi, which is not installed."""


def require_panopticapi(config: Mapping) -> None:
    """Check that panopticapi can be imported if anything in a config needs it.

    Args:
        config: any part of it; types are names, with or without a scope, or classes.

    Raises:
        MissingPanopticAPIError: it cannot; the message names what needs it, and the way to install
            it.
    """
    needed = sorted({kind for kind in _types(config) if kind in NEED_PANOPTICAPI})
    if not needed:
        return
    try:
        import panopticapi.evaluation
        import panopticapi.utils  # noqa: F401
    except ImportError as error:
        raise MissingPanopticAPIError(
            f"this config needs COCO's panopticapi ({', '.join(needed)}), which cannot be imported "
            f'({error}). Install it: pip install --no-deps panopticapi-lite (the copy on PyPI), or '
            'pip install git+https://github.com/cocodataset/panopticapi.git'
        ) from error


def _types(config) -> Iterator[str]:
    """The names of all types in a config, without scopes."""
    if isinstance(config, Mapping):
        yield type_name(config)
        config = list(config.values())
    if isinstance(config, Sequence) and not isinstance(config, str):
        for value in config:
            yield from _types(value)
