"""What this package adds to the stack below it: what is missing there, and safe loading."""

from ddetr_plugin.compat.external_configs import register_configs
from ddetr_plugin.compat.mmcv_extension import (
    MissingMMCVOpError,
    has_mmcv_operators,
    install_mmcv_stand_in,
    require_mmcv_operators,
)
from ddetr_plugin.compat.panoptic_api import MissingPanopticAPIError, require_panopticapi
from ddetr_plugin.compat.safe_globals import allow_runner_checkpoints

__all__ = [
    'MissingMMCVOpError',
    'MissingPanopticAPIError',
    'allow_runner_checkpoints',
    'has_mmcv_operators',
    'install_mmcv_stand_in',
    'register_configs',
    'require_mmcv_operators',
    'require_panopticapi',
]
