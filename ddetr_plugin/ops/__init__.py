"""The operator: multi-scale deformable attention, native where it is built, PyTorch elsewhere.

Needs torch only. ``python -m ddetr_plugin.ops`` tells which implementation runs and checks it.
"""

from ddetr_plugin.ops._native import native_load_error, use_reference
from ddetr_plugin.ops.dropout import dropout, dropout_add, relu_dropout
from ddetr_plugin.ops.functional import ms_deform_attn, ms_deform_attn_fused
from ddetr_plugin.ops.mmcv_replacement import replace_mmcv_op
from ddetr_plugin.ops.reference import (
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    sampling_locations,
)

__all__ = [
    'dropout',
    'dropout_add',
    'ms_deform_attn',
    'ms_deform_attn_fused',
    'ms_deform_attn_fused_reference',
    'ms_deform_attn_reference',
    'native_load_error',
    'relu_dropout',
    'replace_mmcv_op',
    'sampling_locations',
    'use_reference',
]
