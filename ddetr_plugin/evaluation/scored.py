"""Which ground truths count: those that a training learns from."""

import math

from mmdet.datasets.api_wrappers import COCO, COCOeval, COCOevalMP
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval as Evaluation

__all__ = ['ParallelEvaluation', 'SerialEvaluation', 'prepare_truth']

NOT_LEARNED = 'not_learned'  # key of annotations
# The share of a detection that has to be on such a region for the detection not to count.
ON_REGION = 0.5


def prepare_truth(api: COCO, source: str) -> None:
    """Complete the annotations of a COCO API, and mark those that no training learns from.

    mmdet's CocoDataset leaves out boxes that are marked `ignore`, have no area (of the box, or as
    given), are outside their image, or are thinner than a pixel. Here they become crowds, which
    count neither as found nor as missed; see `SerialEvaluation` for the detections on them.

    Annotations get new ids, 1, 2, ...: to pycocotools a box found with id 0 is a box missed, and
    text is no id. Missing `iscrowd` is 0, and missing `area` that of the mask or the box.

    Args:
        api: changed in place.
        source: what messages call it.

    Raises:
        ValueError: a box or an area is NaN or infinite: every detection would match it.
    """
    annotations = api.dataset.setdefault('annotations', [])
    for number, annotation in enumerate(annotations, 1):
        numbers = (*annotation.get('bbox', ()), annotation.get('area', 0))
        if not all(map(math.isfinite, numbers)):
            raise ValueError(
                f'annotation {annotation["id"]} of {source} is not finite: bbox '
                f'{annotation.get("bbox")}, area {annotation.get("area")}; correct or remove it '
                '(tools/check_dataset.py lists all of them)'
            )
        annotation['id'] = number
        if 'area' not in annotation:
            annotation['area'] = _area(api, annotation)
        crowd = annotation.setdefault('iscrowd', 0)
        if not crowd and _is_left_out(annotation, api.imgs.get(annotation['image_id'], {})):
            annotation.update(iscrowd=1, **{NOT_LEARNED: True})
    api.createIndex()
    api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs


def _area(api: COCO, annotation: dict) -> float:
    if annotation.get('segmentation'):
        return float(mask_utils.area(api.annToRLE(annotation)))
    return annotation['bbox'][2] * annotation['bbox'][3]


def _is_left_out(annotation: dict, image: dict) -> bool:
    """As CocoDataset decides it."""
    if annotation.get('ignore') or annotation['area'] <= 0:
        return True
    if 'bbox' not in annotation:
        return False
    x, y, width, height = annotation['bbox']
    right, bottom = image.get('width', math.inf), image.get('height', math.inf)
    outside = min(x + width, right) <= max(x, 0) or min(y + height, bottom) <= max(y, 0)
    return outside or width < 1 or height < 1


class _RegionsNotLearned(Evaluation):
    """Makes detections on regions that are not learned count neither as found nor as wrong.

    A detection of the region's class that finds no scored box does not count if at least half of
    it is on the region, at every IoU threshold, and however many detections there are. COCO's own
    crowds keep COCO's rule, by which that share must reach the threshold itself.
    """

    def computeIoU(self, imgId, catId):  # noqa: N802, N803  pycocotools' names
        # Of crowds, this is the share of the detection.
        ious = super().computeIoU(imgId, catId)
        categories = [catId] if self.params.useCats else self.params.catIds
        truths = [truth for category in categories for truth in self._gts[imgId, category]]
        columns = [i for i, truth in enumerate(truths) if truth.get(NOT_LEARNED)]
        if columns and len(ious):
            shares = ious[:, columns]
            shares[shares >= ON_REGION] = 1
            ious[:, columns] = shares
        return ious


class SerialEvaluation(_RegionsNotLearned, COCOeval):
    """pycocotools' evaluation; regions that are not learned do not count."""

    def summary_limits(self) -> tuple[int, int]:
        """(detections per image and class for mAP, the same for mAP_50, ..., mAP_l)."""
        return 100, self.params.maxDets[2]


class ParallelEvaluation(_RegionsNotLearned, COCOevalMP):
    """The same of mmdet's evaluation in several processes."""

    def summary_limits(self) -> tuple[int, int]:
        """As `SerialEvaluation.summary_limits`."""
        return self.params.maxDets[-1], self.params.maxDets[-1]
