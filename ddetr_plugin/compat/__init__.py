"""What this package adds to the stack below it: mmcv without its extension, safe loading."""

from ddetr_plugin.compat.checkpoints import allow_runner_checkpoints
from ddetr_plugin.compat.mmcv_extension import (
    MissingMMCVOpError,
    install_mmcv_stand_in,
    require_mmcv_operators,
)

__all__ = [
    'MissingMMCVOpError',
    'allow_runner_checkpoints',
    'install_mmcv_stand_in',
    'require_mmcv_operators',
]
