"""What the data pipeline needs beyond mmdet's transforms."""

from ddetr_plugin.datasets.load_resized import LoadImageResized
from ddetr_plugin.datasets.official_resize import OfficialResize

__all__ = ['LoadImageResized', 'OfficialResize']
