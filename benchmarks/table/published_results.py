"""Published results on COCO val2017, to print beside our own: one row per line of the table.

AP, parameters, cost, GPU-hours and FPS of the first ten rows are those of the official Deformable
DETR release (V100; FPS at batch 1 and batch 4); of the others `source` says where AP comes from.
The last ones are ours alone.
"""

from typing import NamedTuple

__all__ = ['PUBLISHED', 'RELEASE', 'Published', 'find']


RELEASE = 'Deformable DETR release'
# arXiv:2010.04159; an internal code base, whose base model reaches 43.8.
ABLATIONS = 'Deformable DETR paper, table 2'


class Published(NamedTuple):
    """One row. What nobody published is None.

    `config` is the name of our file in configs/, without '.py'; `epochs` are its schedule's.
    `gflops` counts a multiply-add once. `fps` is (batch 1, batch 4). `source` is None where nothing
    was published.
    """

    config: str
    method: str
    epochs: int
    ap: float | None = None
    ap_small: float | None = None
    ap_medium: float | None = None
    ap_large: float | None = None
    params_m: float | None = None
    gflops: float | None = None
    gpu_hours: int | None = None
    fps: tuple[float, float] | None = None
    source: str | None = RELEASE
    pq: float | None = None


# fmt: off
PUBLISHED = (
    Published('faster-rcnn_r50_fpn_8xb2-109e_coco', 'Faster R-CNN + FPN',
              109, 42.0, 26.6, 45.4, 53.4, 42, 180, 380, (25.6, 28.0)),
    Published('detr_r50_16xb4-500e_coco', 'DETR',
              500, 42.0, 20.5, 45.8, 61.1, 41, 86, 2000, (27.0, 38.3)),
    Published('detr_r50-dc5_16xb4-500e_coco', 'DETR-DC5',
              500, 43.3, 22.5, 47.3, 61.1, 41, 187, 7000, (11.4, 12.4)),
    Published('detr_r50-dc5_16xb4-50e_coco', 'DETR-DC5',
              50, 35.3, 15.2, 37.5, 53.6, 41, 187, 700, (11.4, 12.4)),
    Published('detr-plus_r50-dc5_16xb4-50e_coco', 'DETR-DC5+',
              50, 36.2, 16.3, 39.2, 53.9, 41, 187, 700, (11.4, 12.4)),
    Published('deformable-detr_r50-single-scale_16xb2-50e_coco', 'Deformable DETR, single scale',
              50, 39.4, 20.6, 43.0, 55.5, 34, 78, 160, (27.0, 42.4)),
    Published('deformable-detr_r50-dc5-single-scale_16xb2-50e_coco',
              'Deformable DETR, single scale, DC5',
              50, 41.5, 24.1, 45.3, 56.0, 34, 128, 215, (22.1, 29.4)),
    Published('deformable-detr_r50_16xb2-50e_coco', 'Deformable DETR',
              50, 44.5, 27.1, 47.6, 59.6, 40, 173, 325, (15.0, 19.4)),
    Published('deformable-detr-refine_r50_16xb2-50e_coco', '+ iterative refinement',
              50, 46.2, 28.3, 49.2, 61.5, 41, 173, 325, (15.0, 19.4)),
    Published('deformable-detr-refine-twostage_r50_16xb2-50e_coco', '++ two-stage',
              50, 46.9, 29.6, 50.1, 61.6, 41, 173, 340, (14.5, 18.8)),
    Published('sparse-rcnn_r50_fpn_300-proposals_8xb2-36e_coco', 'Sparse R-CNN, 300 proposals',
              36, 45.0, source='mmdet 3.3.0'),
    Published('deformable-detr_r50-single-scale-k1_16xb2-50e_coco',
              'Ablation: single-scale inputs, K = 1',
              50, 39.7, 21.2, 44.3, 56.0, source=ABLATIONS),
    Published('deformable-detr_r50-same-level-k1_16xb2-50e_coco',
              'Ablation: no multi-scale attention, K = 1',
              50, 41.4, 24.1, 44.6, 56.1, source=ABLATIONS),
    Published('deformable-detr_r50-same-level_16xb2-50e_coco',
              'Ablation: no multi-scale attention',
              50, 42.3, 24.8, 45.1, 56.3, source=ABLATIONS),
    Published('deformable-detr_r50-fpn_16xb2-50e_coco', 'Ablation: FPN',
              50, 43.8, 26.5, 47.3, 58.1, source=ABLATIONS),
    Published('deformable-detr_vit-small-p16_16xb2-50e_coco', 'Deformable DETR, ViT-S/16',
              50, source=None),
    # A mask's cost is one per detection, and the counted forward pass ends with the decoder.
    Published('deformable-detr-masks_r50_16xb2-50e_coco', 'Deformable DETR, masks (G: boxes alone)',
              50, source=None),
    Published('deformable-detr-masks-frozen_r50_16xb2-25e_coco',
              'Deformable DETR, masks on a frozen detector (G: boxes alone)', 25, source=None),
    Published('detr-masks_r50_16xb4-500e_coco', 'DETR, masks (G: boxes alone)', 500, source=None),
    Published('detr-panoptic_r50_16xb4-500e_coco', 'DETR, panoptic (G: boxes alone)',
              500, source='DETR release', pq=43.4),
    Published('deformable-detr-panoptic_r50_16xb2-50e_coco',
              'Deformable DETR, panoptic (G: boxes alone)', 50, source=None),
)
# fmt: on


def find(config):
    """The published row of a config's name without '.py'; None where there is none."""
    return next((row for row in PUBLISHED if row.config == config), None)
