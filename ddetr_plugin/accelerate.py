"""``custom_imports = dict(imports=['ddetr_plugin.accelerate'])``: faster mmdet models.

Importing this module puts our operator under mmcv's `MultiScaleDeformableAttention`, for the whole
process and for good. `ddetr_plugin.ops.replace_mmcv_op` does so for a while, and documents it.
"""

from ddetr_plugin.ops import mmcv_replacement

__all__ = []

mmcv_replacement.start()
