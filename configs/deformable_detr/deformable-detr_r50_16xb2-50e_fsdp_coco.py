"""Deformable DETR, fully sharded: an example of `_base_/fsdp.py`."""

_base_ = ['./deformable-detr_r50_16xb2-50e_coco.py', '../_base_/fsdp.py']
