"""What a program of its own imports: configs by name; from image files to detections."""

from ddetr_plugin.apis.configs import ConfigRecord, find_config, list_configs
from ddetr_plugin.apis.image_files import find_images, name_results
from ddetr_plugin.apis.loaded_model import category_ids, class_names, load_model
from ddetr_plugin.apis.post_processing import one_class_per_box, suppress_overlaps
from ddetr_plugin.apis.prediction import PredictionPipeline, detect

__all__ = [
    'ConfigRecord',
    'PredictionPipeline',
    'category_ids',
    'class_names',
    'detect',
    'find_config',
    'find_images',
    'list_configs',
    'load_model',
    'name_results',
    'one_class_per_box',
    'suppress_overlaps',
]
