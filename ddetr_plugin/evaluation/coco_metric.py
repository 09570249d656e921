"""COCO's average precision and recall, of boxes, masks and proposals."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmengine.fileio import load
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from ddetr_plugin.evaluation.finite import name_image, require_finite
from ddetr_plugin.evaluation.scored import ParallelEvaluation, SerialEvaluation, prepare_truth
from ddetr_plugin.registry import METRICS

__all__ = ['CocoMetric']

PRECISIONS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
RECALLS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
STATS = {name: index for index, name in enumerate(PRECISIONS + RECALLS)}  # of COCOeval
# mAP is the mean over at most so many detections per image and class.
LIMIT = 100


@METRICS.register_module()
class CocoMetric(MMDetCocoMetric):
    """mmdet's CocoMetric without its blind spots; arguments and names of results are the same.

    On ordinary data the numbers are those of mmdet, bit for bit. What differs:

    * A box or a score that is NaN or infinite is an error that names image and query; to
      pycocotools a box of NaN is a hit.
    * `classwise` pairs classes and precisions by category id, also where the file does not list
      its categories by rising id, and the means over classes are the numbers of the summary: mAP
      at 100 detections, the others at the largest of `proposal_nums`.
    * What mmdet's CocoDataset leaves out of a training is not scored either; see `prepare_truth`.
    * Without any detection AP is 0, instead of no result; `area` and `iscrowd` may be missing.

    For mmdet's own behaviour name ``mmdet.CocoMetric``.

    Raises:
        KeyError: `metric` or `metric_items` has an unknown name.
        ValueError: `proposal_nums` are not three numbers with 100 among them, as mAP needs them;
            or an annotation is not finite.
    """

    # What mmdet's __init__ or a first evaluation sets.
    _coco_api: COCO | None
    cat_ids: Sequence[int] | None
    img_ids: Sequence[int] | None
    iou_thrs: np.ndarray

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | list[str] = 'bbox',
        proposal_nums: Sequence[int] = (100, 300, 1000),
        iou_thrs: float | Sequence[float] | None = None,
        metric_items: Sequence[str] | None = None,
        **kwargs,
    ):
        super().__init__(
            ann_file=ann_file,
            metric=metric,
            proposal_nums=proposal_nums,
            iou_thrs=iou_thrs,
            metric_items=metric_items,
            **kwargs,
        )
        self.iou_thrs = np.atleast_1d(np.asarray(self.iou_thrs, dtype=float))
        unknown = sorted(set(metric_items or ()) - set(STATS))
        if unknown:
            raise KeyError(f'metric_items may be {", ".join(STATS)}; got {", ".join(unknown)}')
        self._check_proposal_nums()
        if self._coco_api is not None:
            prepare_truth(self._coco_api, str(ann_file))

    def _check_proposal_nums(self) -> None:
        if self.format_only or set(self.metrics) == {'proposal_fast'}:
            return
        precise = {'bbox', 'segm'} & set(self.metrics) and not self.use_mp_eval
        if len(self.proposal_nums) != 3 or (precise and LIMIT not in self.proposal_nums):
            raise ValueError(
                f'proposal_nums must be three numbers with {LIMIT} among them, at which mAP is '
                f'measured, such as (1, 10, 100) or (100, 300, 1000); got {self.proposal_nums}'
            )

    def process(self, data_batch: Mapping, data_samples: Sequence[dict]) -> None:
        """As mmdet's.

        Raises:
            NotFiniteError: a box or a score is NaN or infinite.
        """
        for sample in data_samples:
            require_finite(sample['pred_instances'], name_image(sample))
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """As mmdet's, with the same keys.

        Args:
            results: (ground truth, predictions) of each image, as `process` leaves them.

        Raises:
            ValueError: there are no images, or a label is none of the file's classes.
        """
        if not results:
            raise ValueError('there is no image to evaluate: the data set or its loader is empty')
        truths, predictions = zip(*results)
        logger = MMLogger.get_current_instance()
        with tempfile.TemporaryDirectory() as folder:
            prefix = self.outfile_prefix or str(Path(folder) / 'results')
            categories = self._find_truth(truths, prefix)
            self._check_labels(predictions, categories)
            files = self.results2json(predictions, prefix)
            if self.format_only:
                logger.info(f'results are saved in {Path(prefix).parent}')
                return {}
            scores: dict[str, float] = {}
            for metric in self.metrics:
                logger.info(f'Evaluating {metric}...')
                if metric == 'proposal_fast':
                    scores |= self._fast_recall(predictions, logger)
                elif metric not in files:
                    raise KeyError(f'{metric} is not in the results: the model predicts no masks')
                else:
                    scores |= self._evaluate(metric, load(files[metric]), categories, logger)
        return scores

    def _find_truth(self, truths: Sequence[dict], prefix: str) -> list[dict]:
        """Set what is compared with; without `ann_file` that is what the data set loaded.

        Returns:
            The categories of its file, by label.
        """
        if self._coco_api is None:
            self._coco_api = COCO(self.gt_to_coco_json(gt_dicts=truths, outfile_prefix=prefix))
            prepare_truth(self._coco_api, 'what the data set loaded')
        if self.cat_ids is None:
            # In the order of the file, as CocoDataset numbers its labels.
            self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        if self.img_ids is None:
            self.img_ids = self._coco_api.get_img_ids()
        return self._coco_api.load_cats(self.cat_ids)

    def _check_labels(self, predictions: Sequence[dict], categories: Sequence[dict]) -> None:
        largest = max((int(p['labels'].max()) for p in predictions if len(p['labels'])), default=-1)
        if largest >= len(categories):
            listed = [category['name'] for category in categories]
            raise ValueError(
                f'the model predicts label {largest}, but of its classes '
                f'{tuple(self.dataset_meta["classes"])} the annotations have only {len(listed)}: '
                f'{tuple(listed)}; list all of them in categories, in the order of the training'
            )

    def _fast_recall(self, predictions: Sequence[dict], logger: MMLogger) -> dict[str, float]:
        recalls = self.fast_eval_recall(
            predictions, self.proposal_nums, self.iou_thrs, logger=logger
        )
        scores = {f'AR@{number}': recall for number, recall in zip(self.proposal_nums, recalls)}
        logger.info(''.join(f'\n{name}\t{recall:.4f}' for name, recall in scores.items()))
        return scores

    def _evaluate(
        self, metric: str, detections: list, categories: Sequence[dict], logger: MMLogger
    ) -> dict[str, float]:
        """Scores of 'bbox', 'segm' or 'proposal'; detections as in COCO's result files."""
        kind = 'bbox' if metric == 'proposal' else metric
        if kind == 'segm':
            for detection in detections:
                # Else the areas of boxes would decide what is small, medium and large.
                del detection['bbox']
        run = ParallelEvaluation if self.use_mp_eval else SerialEvaluation
        evaluation = run(self._coco_api, _result_api(self._coco_api, detections), kind)
        evaluation.params.catIds = self.cat_ids
        evaluation.params.imgIds = self.img_ids
        evaluation.params.maxDets = list(self.proposal_nums)
        evaluation.params.iouThrs = self.iou_thrs
        if metric == 'proposal':
            evaluation.params.useCats = 0
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats = evaluation.stats
        if metric == 'proposal':
            return {name: float(f'{stats[STATS[name]]:.3f}') for name in self._items(RECALLS)}
        scores = self._score_classes(evaluation, categories, logger) if self.classwise else {}
        for name in self._items(PRECISIONS):
            scores[f'{metric}_{name}'] = float(np.round(stats[STATS[name]], 3))
        logger.info(f'{metric}_mAP_copypaste: ' + ' '.join(f'{value:.3f}' for value in stats[:6]))
        return scores

    def _items(self, default: Sequence[str]) -> Sequence[str]:
        return default if self.metric_items is None else self.metric_items

    def _score_classes(
        self, evaluation, categories: Sequence[dict], logger: MMLogger
    ) -> dict[str, float]:
        """'<class>_precision' of every class; the table of all precisions goes to the log."""
        rows = [[c['name'], *class_precisions(evaluation, c['id']).values()] for c in categories]
        table = [[name, *(f'{np.round(value, 3)}' for value in values)] for name, *values in rows]
        logger.info('\n' + AsciiTable([['category', *PRECISIONS], *table]).table)
        return {f'{name}_precision': float(np.round(mean, 3)) for name, mean, *_ in rows}


def _result_api(truth: COCO, detections: list) -> COCO:
    """Detections as pycocotools holds them; unlike its `loadRes` also without any."""
    if detections:
        return truth.loadRes(detections)
    api = COCO()
    api.dataset = dict(truth.dataset, annotations=[])
    api.createIndex()
    return api


def class_precisions(evaluation, category_id: int) -> dict[str, float]:
    """mAP to mAP_l of one category, as the summary measures them; NaN without scored boxes.

    Args:
        evaluation: `SerialEvaluation` or `ParallelEvaluation`, accumulated.
        category_id: one of its `params.catIds`.
    """
    params = evaluation.params
    # (IoU threshold, recall, category, area range, maxDets); -1 where there is nothing to find.
    precision = evaluation.eval['precision'][:, :, list(params.catIds).index(category_id)]
    first, others = map(params.maxDets.index, evaluation.summary_limits())
    everything = np.ones(len(params.iouThrs), dtype=bool)
    parts = dict(
        mAP=(everything, 0, first),
        mAP_50=(params.iouThrs == 0.5, 0, others),
        mAP_75=(params.iouThrs == 0.75, 0, others),
        mAP_s=(everything, 1, others),
        mAP_m=(everything, 2, others),
        mAP_l=(everything, 3, others),
    )
    scores = {}
    for name, (thresholds, area, limit) in parts.items():
        values = precision[thresholds, :, area, limit]
        values = values[values > -1]
        scores[name] = float(values.mean()) if values.size else float('nan')
    return scores
