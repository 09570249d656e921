"""Panoptic quality, also of data without things or without stuff."""

import math
from collections.abc import Mapping, Sequence

from mmdet.datasets.api_wrappers import COCOPanoptic
from mmdet.evaluation import CocoPanopticMetric as MMDetCocoPanopticMetric
from mmdet.evaluation.functional import pq_compute_multi_core
from mmdet.evaluation.metrics.coco_panoptic_metric import parse_pq_results, print_panoptic_table
from mmengine.fileio import load
from mmengine.logging import MMLogger

from ddetr_plugin.evaluation.finite import name_image, require_finite
from ddetr_plugin.registry import METRICS

__all__ = ['CocoPanopticMetric']

# Part of the classes -> which of them: all, things, stuff.
PARTS = {'All': None, 'Things': True, 'Stuff': False}


@METRICS.register_module()
class CocoPanopticMetric(MMDetCocoPanopticMetric):
    """mmdet's CocoPanopticMetric; arguments, numbers and names of results are the same.

    What differs:

    * Where no thing, or no stuff, is in the ground truth or predicted, `PQ_th` and its kin, or
      `PQ_st` and its kin, are left out; mmdet (panopticapi) divides by zero.
    * `classwise` names classes by category id, whichever of the file's the data set takes.
    * A box or a score in `pred_instances` that is NaN or infinite is an error.

    For mmdet's own behaviour name ``mmdet.CocoPanopticMetric``.
    """

    # What mmdet's __init__ or a first evaluation sets.
    _coco_api: COCOPanoptic | None

    def process(self, data_batch: Mapping, data_samples: Sequence[dict]) -> None:
        """As mmdet's.

        Raises:
            NotFiniteError: a box or a score is NaN or infinite; it names image and query.
        """
        for sample in data_samples:
            if 'pred_instances' in sample:
                require_finite(sample['pred_instances'], name_image(sample))
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """As mmdet's: PQ, SQ, RQ, and those of things (`PQ_th`) and stuff (`PQ_st`), in 0..100.

        Args:
            results: of each image, panopticapi's statistics; where `outfile_prefix` is set, pairs
                of ground truth and predictions.

        Raises:
            ValueError: there are no images.
        """
        if not results:
            raise ValueError('there is no image to evaluate: the data set or its loader is empty')
        if self.format_only:
            return super().compute_metrics(results)
        statistics = self._sum(results) if self.tmp_dir is not None else self._compare(results)
        parts = {}
        for name, is_thing in PARTS.items():
            try:
                parts[name], by_id = statistics.pq_average(self.categories, isthing=is_thing)
            except ZeroDivisionError:
                parts[name] = dict(pq=math.nan, sq=math.nan, rq=math.nan, n=0)
                continue
            if name == 'All':
                parts['classwise'] = by_id
        by_name = None
        if self.classwise and 'classwise' in parts:
            wanted = set(self.dataset_meta['classes'])
            names = {i: category['name'] for i, category in self.categories.items()}
            by_name = {names[i]: v for i, v in parts['classwise'].items() if names[i] in wanted}
        print_panoptic_table(parts, by_name, logger=MMLogger.get_current_instance())
        return {k: v for k, v in parse_pq_results(parts).items() if not math.isnan(v)}

    def _sum(self, results: list):
        """Statistics of all images."""
        if self._coco_api is None:
            things = self.dataset_meta['thing_classes']
            self.categories = {
                label: dict(id=label, name=name, isthing=int(name in things))
                for label, name in enumerate(self.dataset_meta['classes'])
            }
        total = type(results[0])()
        for result in results:
            total += result
        return total

    def _compare(self, results: list):
        """Statistics of all images, whose predictions are written to files first."""
        truths, predictions = zip(*results)
        folder = self.seg_prefix
        if self._coco_api is None:
            file, folder = self.gt_to_coco_json(truths, self.outfile_prefix)
            self._coco_api = COCOPanoptic(file)
        api = self._coco_api
        self.categories = api.cats
        self.img_ids = api.get_img_ids()
        self.cat_ids = api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        self.cat2label = {category_id: i for i, category_id in enumerate(self.cat_ids)}
        file, predicted_folder = self.result2json(predictions, self.outfile_prefix)
        predicted = {entry['image_id']: entry for entry in load(file)['annotations']}
        missing = sorted(set(api.img_ann_map) - set(predicted), key=str)
        if missing:
            raise ValueError(
                f'{len(missing)} images of the annotations have no prediction, the first has id '
                f'{missing[0]}; evaluate all images of the file'
            )
        pairs = [
            (
                dict(image_id=i, segments_info=segments, file_name=api.imgs[i]['segm_file']),
                predicted[i],
            )
            for i, segments in api.img_ann_map.items()
        ]
        return pq_compute_multi_core(
            pairs,
            folder,
            predicted_folder,
            self.categories,
            backend_args=self.backend_args,
            nproc=self.nproc,
        )
