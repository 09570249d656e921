"""Data sets in COCO format, checked before a training: what does not fit, and what to do."""

from ddetr_plugin.data_checks.annotations import check_annotations
from ddetr_plugin.data_checks.box_forms import BOX_FORMS, to_pixels
from ddetr_plugin.data_checks.capacity import check_capacity
from ddetr_plugin.data_checks.configs import (
    box_datasets,
    check_config,
    config_scales,
    has_checked_data,
)
from ddetr_plugin.data_checks.entries import is_scored
from ddetr_plugin.data_checks.findings import (
    SHOWN,
    DataError,
    Finding,
    describe_findings,
    has_errors,
    write_report,
)
from ddetr_plugin.data_checks.pictures import check_pictures, find_missing, rescale_size
from ddetr_plugin.data_checks.reading import (
    PLAIN,
    check_encoding,
    encoding_of,
    read_annotations,
    read_json,
    require_coco,
)
from ddetr_plugin.data_checks.splits import Split, check_class_names, check_split, check_splits
from ddetr_plugin.data_checks.whereabouts import dataset_folder

__all__ = [
    'BOX_FORMS',
    'PLAIN',
    'SHOWN',
    'DataError',
    'Finding',
    'Split',
    'box_datasets',
    'check_annotations',
    'check_capacity',
    'check_class_names',
    'check_config',
    'check_encoding',
    'check_pictures',
    'check_split',
    'check_splits',
    'config_scales',
    'dataset_folder',
    'describe_findings',
    'encoding_of',
    'find_missing',
    'has_checked_data',
    'has_errors',
    'is_scored',
    'read_annotations',
    'read_json',
    'require_coco',
    'rescale_size',
    'to_pixels',
    'write_report',
]
