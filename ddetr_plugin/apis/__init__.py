"""What a program of its own imports: from image files to detections."""

from ddetr_plugin.apis.image_files import find_images, name_results
from ddetr_plugin.apis.loaded_model import category_ids, class_names, load_model
from ddetr_plugin.apis.post_processing import one_class_per_box, suppress_overlaps
from ddetr_plugin.apis.prediction import PredictionPipeline, detect

__all__ = [
    'PredictionPipeline',
    'category_ids',
    'class_names',
    'detect',
    'find_images',
    'load_model',
    'name_results',
    'one_class_per_box',
    'suppress_overlaps',
]
