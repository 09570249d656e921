"""Metrics that refuse broken predictions and score what the training learns, and nothing else."""

from ddetr_plugin.evaluation.coco_metric import CocoMetric
from ddetr_plugin.evaluation.finite import read_detections, require_finite
from ddetr_plugin.evaluation.panoptic_metric import CocoPanopticMetric

__all__ = ['CocoMetric', 'CocoPanopticMetric', 'read_detections', 'require_finite']
