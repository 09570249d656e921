"""Curves of a training: losses and mAP over iterations."""

import json
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

__all__ = ['draw_curves', 'read_scalars']

LOSSES = ('loss', 'loss_cls', 'loss_bbox', 'loss_iou')
METRICS = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75')


def read_scalars(work_dir: str | os.PathLike) -> tuple[dict[int, dict], dict[int, dict]]:
    """What mmengine logged, of all runs in a work folder, later ones overriding earlier ones.

    Returns:
        ({iteration: losses}, {iteration: metrics}), rising.
    """
    losses, metrics = {}, {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if 'coco/bbox_mAP' in entry or 'coco_panoptic/PQ' in entry:
                if entry['step'] > 0:  # 0: a test apart from a training
                    metrics[entry['step']] = entry
            elif 'loss' in entry:
                losses[entry['iter']] = entry
    return dict(sorted(losses.items())), dict(sorted(metrics.items()))


def draw_curves(work_dir: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write a PNG with losses (left) and mAP (right) over iterations."""
    losses, metrics = read_scalars(work_dir)
    # No pyplot, whose figures and backend are the whole process's.
    figure = Figure(figsize=(11, 4), layout='constrained')
    left, right = figure.subplots(1, 2)
    for name in LOSSES:
        left.plot(list(losses), [entry.get(name, np.nan) for entry in losses.values()], label=name)
    left.set(xlabel='iteration', ylabel='loss (all layers: "loss"; last layer: the others)')
    left.set_yscale('log')
    for name in METRICS:
        values = [entry.get('coco/' + name, np.nan) for entry in metrics.values()]
        right.plot(list(metrics), values, marker='o', label=name)
    right.set(xlabel='iteration', ylabel='average precision', ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(out, dpi=110)
