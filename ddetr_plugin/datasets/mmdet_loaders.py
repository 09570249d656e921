"""Pipelines in which mmdet finds the loaders that it looks for."""

from collections.abc import Sequence

from ddetr_plugin.config_types import has_type

__all__ = ['with_mmdet_loaders']


def with_mmdet_loaders(pipeline: Sequence[dict]) -> list[dict]:
    """A pipeline without this package's loaders, which loads the same images.

    Tools of mmdet look for LoadImageFromFile by name, and accept no class derived from it:
    DetInferencer in the pipeline of the test, analyze_results in that of the training.

    Args:
        pipeline: configs of transforms; unchanged.

    Returns:
        The configs, with what LoadImageChecked wraps in its place, and LoadImageFromFile and
        Resize in that of LoadImageResized (pixels then differ as its documentation says).
    """
    plain = []
    for step in pipeline:
        settings = {name: value for name, value in step.items() if name != 'type'}
        if has_type(step, 'LoadImageChecked'):
            plain.append(dict(settings['load']))
        elif has_type(step, 'LoadImageResized'):
            backend = settings.pop('backend_args', None)
            plain.append(dict(type='LoadImageFromFile', backend_args=backend))
            plain.append(dict(settings, type='Resize'))
        else:
            plain.append(step)
    return plain
