"""The front door: what a program of its own imports.

    from ddetr_plugin.apis import Detector

    detector = Detector('config.py', 'weights.pth')
    for found in detector('folder of images'):
        print(found.source, found.names, found.boxes)

Names are looked up when they are used, so that each costs the imports that it needs alone.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddetr_plugin.apis.config_reading import load_config
    from ddetr_plugin.apis.configs import ConfigRecord, find_config, list_configs
    from ddetr_plugin.apis.conversion import convert
    from ddetr_plugin.apis.data_checking import check_data
    from ddetr_plugin.apis.detections import Detections
    from ddetr_plugin.apis.detector import Detector
    from ddetr_plugin.apis.doctor import diagnose
    from ddetr_plugin.apis.image_files import find_images, name_results
    from ddetr_plugin.apis.image_pipeline import PredictionPipeline
    from ddetr_plugin.apis.launch import build_runner
    from ddetr_plugin.apis.loaded_model import category_ids, class_names, load_model
    from ddetr_plugin.apis.own_training import demo
    from ddetr_plugin.apis.post_processing import one_class_per_box, suppress_overlaps
    from ddetr_plugin.apis.predicting import predict
    from ddetr_plugin.apis.testing import evaluate
    from ddetr_plugin.apis.training import train

# Where each name is from.
_HOMES = {
    'ConfigRecord': 'configs',
    'Detections': 'detections',
    'Detector': 'detector',
    'PredictionPipeline': 'image_pipeline',
    'build_runner': 'launch',
    'category_ids': 'loaded_model',
    'check_data': 'data_checking',
    'class_names': 'loaded_model',
    'convert': 'conversion',
    'demo': 'own_training',
    'diagnose': 'doctor',
    'evaluate': 'testing',
    'find_config': 'configs',
    'find_images': 'image_files',
    'list_configs': 'configs',
    'load_config': 'config_reading',
    'load_model': 'loaded_model',
    'name_results': 'image_files',
    'one_class_per_box': 'post_processing',
    'predict': 'predicting',
    'suppress_overlaps': 'post_processing',
    'train': 'training',
}

__all__ = [
    'ConfigRecord',
    'Detections',
    'Detector',
    'PredictionPipeline',
    'build_runner',
    'category_ids',
    'check_data',
    'class_names',
    'convert',
    'demo',
    'diagnose',
    'evaluate',
    'find_config',
    'find_images',
    'list_configs',
    'load_config',
    'load_model',
    'name_results',
    'one_class_per_box',
    'predict',
    'suppress_overlaps',
    'train',
]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
    globals()[name] = value
    return value


def __dir__():
    return [*globals(), *_HOMES]
