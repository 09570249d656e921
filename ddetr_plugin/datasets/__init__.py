"""What the data pipeline needs beyond mmdet's datasets and transforms."""

from ddetr_plugin.datasets.image_files import Decoding, UnreadableImageError, read_image
from ddetr_plugin.datasets.load_checked import BrokenPictureError, LoadImageChecked
from ddetr_plugin.datasets.load_panoptic import LoadPanopticInstances
from ddetr_plugin.datasets.load_resized import LoadImageResized
from ddetr_plugin.datasets.mmdet_loaders import with_mmdet_loaders
from ddetr_plugin.datasets.official_coco import OfficialCocoDataset
from ddetr_plugin.datasets.official_resize import OfficialResize

__all__ = [
    'BrokenPictureError',
    'Decoding',
    'LoadImageChecked',
    'LoadImageResized',
    'LoadPanopticInstances',
    'OfficialCocoDataset',
    'OfficialResize',
    'with_mmdet_loaders',
    'UnreadableImageError',
    'read_image',
]
