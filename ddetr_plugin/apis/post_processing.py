"""What may be left out of a detector's output: several classes of one box, boxes that overlap.

DETRs have no non-maximum suppression, and evaluation wants none. Both are for people who look at
detections or count objects.
"""

import cv2
import torch
from mmengine.structures import InstanceData

__all__ = ['one_class_per_box', 'suppress_overlaps']


def one_class_per_box(instances: InstanceData) -> InstanceData:
    """Of the detections that one query has, that of the best score.

    Args:
        instances: `bboxes` (n, 4), `scores` (n,), and `queries` (n,) where the head gives them.
            Without, detections of one query are those whose boxes are equal in all bits.

    Returns:
        InstanceData, best first.
    """
    order = instances.scores.sort(descending=True, stable=True).indices
    instances = instances[order]
    keys = instances.queries[:, None] if 'queries' in instances else instances.bboxes
    seen: set[tuple] = set()
    keep = []
    for index, key in enumerate(map(tuple, keys.tolist())):
        if key not in seen:
            seen.add(key)
            keep.append(index)
    return instances[torch.tensor(keep, dtype=torch.long, device=order.device)]


def suppress_overlaps(instances: InstanceData, iou: float) -> InstanceData:
    """Non-maximum suppression among the detections of each class.

    Args:
        instances: `bboxes` (n, 4) as (x1, y1, x2, y2) in pixels, `scores` (n,), `labels` (n,).
        iou: 0..1; of two boxes whose intersection over union is larger, the one with the lower
            score is left out.

    Returns:
        InstanceData, best first.

    Raises:
        ValueError: `iou` is not between 0 and 1.
    """
    if not 0 <= iou <= 1:
        raise ValueError(f'the IoU of non-maximum suppression must be 0..1, got {iou}')
    order = instances.scores.sort(descending=True, stable=True).indices
    instances = instances[order]
    corners = instances.bboxes.detach().cpu().double()
    boxes = torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), dim=1)
    keep: list[int] = []
    for label in instances.labels.unique().tolist():
        places = (instances.labels == label).nonzero()[:, 0].tolist()
        # Ranks, since OpenCV takes scores in float32 and may order equal ones anew.
        ranks = [float(len(places) - rank) for rank in range(len(places))]
        kept = cv2.dnn.NMSBoxes(boxes[places].tolist(), ranks, 0.0, float(iou))
        keep += [places[index] for index in kept]
    return instances[torch.tensor(sorted(keep), dtype=torch.long, device=order.device)]
