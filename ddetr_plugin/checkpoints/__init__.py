"""A bridge for Deformable DETR weights: official release, mmdet, transformers, detrex, ours."""

from ddetr_plugin.checkpoints.convert import to_ours
from ddetr_plugin.checkpoints.convert_in_place import adopt, install_checkpoint_loader
from ddetr_plugin.checkpoints.files.reading import Source, read_checkpoint, unwrap
from ddetr_plugin.checkpoints.files.safe_loading import CheckpointFileError
from ddetr_plugin.checkpoints.files.writing import write_checkpoint
from ddetr_plugin.checkpoints.names.detect import OURS, detect_architecture, detect_dialect
from ddetr_plugin.checkpoints.names.rename import export, import_state
from ddetr_plugin.checkpoints.names.table import DIALECTS, Architecture
from ddetr_plugin.checkpoints.parity.other_models import with_rows
from ddetr_plugin.checkpoints.record import Conversion, OtherShape, Problems
from ddetr_plugin.checkpoints.report import (
    describe,
    dilation_mismatch,
    settings_mismatch,
    settings_to_match,
)
from ddetr_plugin.checkpoints.same_bits import checksum
from ddetr_plugin.compat.safe_globals import allow_official_checkpoints

__all__ = [
    'DIALECTS',
    'OURS',
    'CheckpointFileError',
    'Conversion',
    'OtherShape',
    'Problems',
    'Architecture',
    'Source',
    'adopt',
    'allow_official_checkpoints',
    'checksum',
    'describe',
    'detect_dialect',
    'detect_architecture',
    'dilation_mismatch',
    'export',
    'import_state',
    'install_checkpoint_loader',
    'read_checkpoint',
    'settings_mismatch',
    'settings_to_match',
    'to_ours',
    'unwrap',
    'with_rows',
    'write_checkpoint',
]
