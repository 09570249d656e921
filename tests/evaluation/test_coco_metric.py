"""COCO's metric: mmdet's numbers on ordinary data, and the right ones where mmdet's are wrong."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_cases import annotation, found, ordinary, score, write_truth
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData

from ddetr_plugin.evaluation import CocoMetric, read_detections, require_finite
from ddetr_plugin.models.losses.assigner import NotFiniteError

# isort: split
from mmdet.evaluation import CocoMetric as MMDetCocoMetric

SAMPLE = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'coco_sample' / 'annotations'
needs_sample = pytest.mark.skipif(
    not SAMPLE.exists(), reason='the data sets are not part of the project'
)
THREE = ((1, 'person'), (2, 'car'), (3, 'dog'))
NAMES = tuple(name for _, name in THREE)
BOX, OTHER = (20, 30, 100, 80), (200, 100, 60, 90)


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(metric=['bbox', 'segm'], classwise=True),
        dict(proposal_nums=(1, 10, 100), classwise=True),
        dict(metric=['proposal', 'bbox']),
        dict(metric='segm', iou_thrs=np.array([0.5, 0.6, 0.75])),
        dict(metric_items=['mAP_50', 'AR@100', 'AR_l@1000']),
        dict(prefix='other'),
    ],
    ids=str,
)
def test_on_ordinary_data_names_and_numbers_are_those_of_mmdet(options, tmp_path):
    annotations, samples = ordinary()
    file = write_truth(tmp_path / 'truth.json', annotations, THREE, images=8)
    ours, theirs = (
        score(file, copy.deepcopy(samples), NAMES, kind=kind, **options)
        for kind in (CocoMetric, MMDetCocoMetric)
    )
    assert list(ours) == list(theirs)
    np.testing.assert_array_equal(list(ours.values()), list(theirs.values()))
    assert any(0 < value < 1 for value in ours.values())


def test_result_files_are_those_of_mmdet(tmp_path):
    annotations, samples = ordinary(seed=1)
    file = write_truth(tmp_path / 'truth.json', annotations, THREE, images=8)
    for name, kind in (('ours', CocoMetric), ('theirs', MMDetCocoMetric)):
        options = dict(metric=['bbox', 'segm'], outfile_prefix=str(tmp_path / name))
        results = score(file, copy.deepcopy(samples), NAMES, kind, format_only=True, **options)
        assert results == {}
    for kind in ('bbox', 'segm'):
        ours, theirs = (tmp_path / f'{name}.{kind}.json' for name in ('ours', 'theirs'))
        assert ours.read_bytes() == theirs.read_bytes()


def test_without_a_file_it_compares_with_what_the_data_set_loaded_as_mmdet_does():
    annotations, samples = ordinary(seed=2)
    for sample in samples:
        sample['instances'] = [
            dict(bbox=[x, y, x + w, y + h], bbox_label=a['category_id'] - 1)
            | dict(ignore_flag=a['iscrowd'])
            for a in annotations
            if a['image_id'] == sample['img_id']
            for x, y, w, h in [a['bbox']]
        ]
    ours, theirs = (
        score(None, copy.deepcopy(samples), NAMES, kind=kind)
        for kind in (CocoMetric, MMDetCocoMetric)
    )
    assert ours == theirs
    assert 0 < ours['bbox_mAP'] < 1


# What is not finite.


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('field', ['bboxes', 'scores', 'mask_scores'])
def test_a_number_that_is_not_finite_is_refused_with_image_and_query(field, bad, tmp_path):
    file = write_truth(tmp_path / 'truth.json', [annotation(1, 1, BOX)])
    sample = found(1, [(0, BOX, 0.9), (1, BOX, 0.8)], queries=torch.tensor([17, 5]))
    predicted = sample['pred_instances']
    predicted.setdefault('mask_scores', torch.ones(2))
    predicted[field][1] = bad
    with pytest.raises(NotFiniteError, match=r'query 5 on image 1 \(images/1\.jpg\).*\(1 of 2 det'):
        score(file, [sample])
    with pytest.raises(NotFiniteError, match='query 5 on image x.png'):
        require_finite(InstanceData(**predicted), 'x.png')
    del predicted['queries']
    with pytest.raises(NotFiniteError, match='detection 1 on image x.png'):
        require_finite({k: v.numpy() for k, v in predicted.items()}, 'x.png')


def test_finite_predictions_pass_be_there_none():
    for sample in (found(1), found(1, [(0, BOX, 0.5)])):
        require_finite(sample['pred_instances'], 'x.png')


def test_a_box_of_nan_is_a_hit_to_mmdet(tmp_path):
    """The premise of refusing it."""
    file = write_truth(tmp_path / 'truth.json', [annotation(1, 1, BOX)])
    nothing = found(1, [(0, (math.nan,) * 4, 0.9)])
    assert score(file, [nothing], kind=MMDetCocoMetric)['bbox_mAP'] == pytest.approx(1)


@pytest.mark.parametrize('change', [dict(bbox=[1, math.nan, 5, 5]), dict(area=math.inf)])
def test_a_ground_truth_that_is_not_finite_is_refused_at_once(change, tmp_path):
    file = write_truth(tmp_path / 'truth.json', [annotation(1, 1, BOX, **change)])
    with pytest.raises(ValueError, match=r'annotation 1 of .*truth\.json is not finite'):
        CocoMetric(ann_file=str(file))


@pytest.mark.parametrize('wrap', [lambda rows: rows, lambda rows: dict(annotations=rows)])
def test_files_of_detections_are_read_and_refused_where_they_are_not_finite(wrap, tmp_path):
    file = tmp_path / 'found.json'
    rows = [dict(image_id=7, category_id=1, bbox=[1, 2, 3, 4], score=0.5) for _ in range(2)]
    file.write_text(json.dumps(wrap(rows)))
    assert read_detections(file) == rows
    for change in (dict(bbox=[1, 2, math.inf, 4]), dict(score=math.nan)):
        file.write_text(json.dumps(wrap([rows[0], rows[1] | change])))
        with pytest.raises(NotFiniteError, match=r'entry 1 of .*found\.json, on image 7, is not'):
            read_detections(file)


@pytest.mark.parametrize('content', [3, dict(images=[]), [dict(image_id=1)], [3]])
def test_other_files_are_no_detections(content, tmp_path):
    file = tmp_path / 'found.json'
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'found\.json'):
        read_detections(file)


# Precision of each class.


@pytest.mark.parametrize('metric', ['bbox', 'segm'])
def test_each_class_gets_its_own_precision_in_whatever_order_the_file_lists_them(metric, tmp_path):
    categories = ((7, 'person'), (2, 'car'))
    truth = [annotation(1, 7, BOX), annotation(1, 2, OTHER)]
    file = write_truth(tmp_path / 'truth.json', truth, categories)
    samples = [found(1, [(0, BOX, 0.9)], masks=True)]  # the person, which is label 0
    options = dict(metric=metric, classwise=True)
    ours = score(file, copy.deepcopy(samples), **options)
    assert ours['person_precision'] == pytest.approx(1)
    assert ours['car_precision'] == 0
    # The premise.
    theirs = score(file, samples, kind=MMDetCocoMetric, **options)
    assert theirs['person_precision'] == 0 and theirs['car_precision'] == pytest.approx(1)


def test_each_class_gets_its_own_precision_in_a_subset_of_the_classes(tmp_path):
    categories = ((9, 'dog'), (7, 'person'), (2, 'car'))
    truth = [annotation(1, 7, BOX), annotation(1, 2, OTHER), annotation(1, 9, OTHER)]
    file = write_truth(tmp_path / 'truth.json', truth, categories)
    # Labels number the classes in the order of the file: person 0, car 1.
    results = score(file, [found(1, [(1, OTHER, 0.9)])], ('car', 'person'), classwise=True)
    classes = {k: v for k, v in results.items() if k.endswith('_precision')}
    assert classes == {'person_precision': 0, 'car_precision': pytest.approx(1)}


def test_the_mean_over_classes_is_the_summary_also_with_more_than_100_detections(tmp_path):
    """To mmdet the 150th detection counts for the class, though not for mAP."""
    file = write_truth(tmp_path / 'truth.json', [annotation(1, 1, BOX)])
    wrong = [(0, (300, 200, 5, 5), 0.9 - i / 1000) for i in range(149)]
    samples = [found(1, [*wrong, (0, BOX, 0.1)])]
    ours = score(file, samples, classwise=True)
    assert ours['bbox_mAP'] == ours['person_precision'] == 0 < ours['bbox_mAP_50']
    assert math.isnan(ours['car_precision'])
    assert score(file, samples, kind=MMDetCocoMetric, classwise=True)['person_precision'] > 0


@pytest.mark.parametrize('numbers', [(1, 10), (1, 10, 300), (1, 10, 100, 300)])
def test_detections_at_which_map_cannot_be_measured_are_refused(numbers, tmp_path):
    file = write_truth(tmp_path / 'truth.json', [])
    with pytest.raises(ValueError, match=r'proposal_nums must be three numbers with 100 among'):
        CocoMetric(ann_file=str(file), proposal_nums=numbers)
    CocoMetric(ann_file=str(file), proposal_nums=numbers, metric='proposal_fast')


def test_an_unknown_metric_item_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(KeyError, match='mAP_50.*got mAP_33'):
        CocoMetric(metric_items=['mAP_33'])


def test_a_label_that_the_file_does_not_have_is_refused(tmp_path):
    file = write_truth(tmp_path / 'truth.json', [annotation(1, 1, BOX)], [(1, 'person')])
    with pytest.raises(ValueError, match=r"label 1, but of its classes \('person', 'car'\) .* 1"):
        score(file, [found(1, [(1, BOX, 0.9)])])


# What is not learned is not scored.

LEFT_OUT = {
    'ignore': dict(ignore=1),
    'area 0': dict(area=0),
    'no width': dict(bbox=[200, 100, 0, 90], area=0),
    'thin': dict(bbox=[200, 100, 0.5, 90]),
    'outside': dict(bbox=[400, 100, 60, 90]),
}


@pytest.mark.parametrize('change', LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_a_training_leaves_out_is_not_missed(change, tmp_path):
    file = write_truth(
        tmp_path / 'truth.json', [annotation(1, 1, BOX), annotation(1, 1, OTHER, **change)]
    )
    samples = [found(1, [(0, BOX, 0.9)])]
    assert score(file, samples)['bbox_mAP'] == pytest.approx(1)
    # The premise.
    assert score(file, samples, kind=MMDetCocoMetric)['bbox_mAP'] < 0.6


def test_the_data_set_leaves_out_the_same(tmp_path):
    from mmdet.datasets import CocoDataset

    left_out = [annotation(1, 1, OTHER, **change) for change in LEFT_OUT.values()]
    file = write_truth(tmp_path / 'truth.json', [annotation(1, 1, BOX), *left_out])
    dataset = CocoDataset(
        ann_file=str(file),
        data_prefix=dict(img=''),
        metainfo=dict(classes=('person', 'car')),
        pipeline=[],
        test_mode=True,
    )
    x, y, w, h = BOX
    assert [i['bbox'] for i in dataset.get_data_info(0)['instances']] == [[x, y, x + w, y + h]]


@pytest.mark.parametrize('metric', ['bbox', 'segm'])
@pytest.mark.parametrize('change', [dict(ignore=1), dict(area=0)], ids=str)
def test_detections_on_such_a_box_are_neither_hits_nor_false(change, metric, tmp_path):
    """However well they fit, and however many there are; elsewhere they are false."""
    truth = [annotation(1, 1, BOX), annotation(1, 2, BOX), annotation(1, 1, OTHER, **change)]
    file = write_truth(tmp_path / 'truth.json', truth)
    x, y, w, h = OTHER
    right = [(0, BOX, 0.5), (1, BOX, 0.4)]
    on = [(0, OTHER, 0.9), (0, (x + 15, y - 20, w, h), 0.8), (0, (x, y, w, h / 3), 0.7)]
    off = [(0, (x - 40, y, w, h), 0.9)]
    other_class = [(1, OTHER, 0.9)]

    def mean(rows):
        return score(file, [found(1, rows, masks=True)], metric=metric)[f'{metric}_mAP']

    assert mean(right) == mean(right + on) == pytest.approx(1)
    assert mean(right + off) == mean(right + other_class) == 0.75
    assert mean(on) == 0
    # A scored box beside it is found as ever.
    assert mean(right + on + [(1, OTHER, 0.1)]) == pytest.approx(1)


def test_a_class_of_which_nothing_is_learned_does_not_count(tmp_path):
    truth = [annotation(1, 1, BOX), annotation(1, 2, OTHER, ignore=1)]
    file = write_truth(tmp_path / 'truth.json', truth)
    results = score(file, [found(1, [(0, BOX, 0.9)])], classwise=True)
    assert results['bbox_mAP'] == results['person_precision'] == pytest.approx(1)
    assert math.isnan(results['car_precision'])


def test_crowds_keep_the_rule_of_coco(tmp_path):
    truth = [annotation(1, 1, BOX), annotation(1, 1, OTHER, iscrowd=1, ignore=1)]
    file = write_truth(tmp_path / 'truth.json', truth)
    x, y, w, h = OTHER
    samples = [found(1, [(0, BOX, 0.5), (0, (x - w / 4, y, w, h), 0.9)])]
    ours, theirs = (score(file, samples, kind=k) for k in (CocoMetric, MMDetCocoMetric))
    assert ours == theirs
    assert 0.5 < ours['bbox_mAP'] < 1


@pytest.mark.parametrize('first', [0, -3, 'a'])
def test_any_id_of_an_annotation_will_do(first, tmp_path):
    """To pycocotools a box found with id 0 is a box missed."""
    file = write_truth(tmp_path / 'truth.json', [annotation(1, 1, BOX, id=first)])
    assert score(file, [found(1, [(0, BOX, 0.9)])])['bbox_mAP'] == pytest.approx(1)


# Nothing found, nothing said.


@pytest.mark.parametrize('metric', ['bbox', 'segm', 'proposal', 'proposal_fast'])
def test_no_detection_at_all_is_a_result_of_zero(metric, tmp_path):
    file = write_truth(tmp_path / 'truth.json', [annotation(1, 1, BOX)])
    results = score(file, [found(1, masks=True)], metric=metric)
    assert results
    assert set(results.values()) <= {0, -1}
    names = {'proposal': 'AR@1000', 'proposal_fast': 'AR@1000'}
    assert results[names.get(metric, f'{metric}_mAP')] == 0


def test_no_image_at_all_is_an_error(tmp_path):
    file = write_truth(tmp_path / 'truth.json', [annotation(1, 1, BOX)])
    with pytest.raises(ValueError, match='no image to evaluate'):
        score(file, [])


def test_missing_area_and_iscrowd_are_those_of_the_mask_or_the_box(tmp_path):
    triangle = [[20, 30, 120, 30, 20, 110]]
    bare = [annotation(1, 1, BOX), annotation(1, 2, (5, 5, 40, 40), segmentation=triangle)]
    for row in bare:
        del row['area'], row['iscrowd']
    del bare[0]['segmentation']
    file = write_truth(tmp_path / 'truth.json', bare)
    metric = CocoMetric(ann_file=str(file))
    box, masked = metric._coco_api.dataset['annotations']
    assert box['area'] == 100 * 80
    assert masked['area'] == pytest.approx(100 * 80 / 2, rel=0.03)
    results = score(file, [found(1, [(0, BOX, 0.9)])])
    assert results['bbox_mAP'] == results['bbox_mAP_m'] == 0.5


def test_a_file_without_annotations_has_no_precision(tmp_path):
    file = write_truth(tmp_path / 'truth.json', [])
    content = json.loads(file.read_text())
    del content['annotations']
    file.write_text(json.dumps(content))
    assert score(file, [found(1, [(0, BOX, 0.9)])])['bbox_mAP'] == -1


# Real annotations.


def perfect(content) -> list:
    """Data samples that have every box which is no crowd."""
    labels = {category['id']: i for i, category in enumerate(content['categories'])}
    rows = {image['id']: [] for image in content['images']}
    for a in content['annotations']:
        if not a['iscrowd']:
            rows[a['image_id']].append((labels[a['category_id']], a['bbox'], 0.9))
    return [found(i, boxes) for i, boxes in rows.items()]


@needs_sample
def test_on_coco_the_numbers_are_those_of_mmdet():
    file = SAMPLE / 'instances_val.json'
    content = json.loads(file.read_text())
    classes = tuple(category['name'] for category in content['categories'])
    rng = np.random.default_rng(0)
    samples = perfect(content)
    for sample in samples:
        predicted = sample['pred_instances']
        boxes = predicted['bboxes']
        boxes += torch.from_numpy(rng.normal(scale=4, size=boxes.shape))
        predicted['scores'] = torch.from_numpy(rng.random(len(boxes)))
    ours, theirs = (
        score(file, samples, classes, kind=kind, classwise=True)
        for kind in (CocoMetric, MMDetCocoMetric)
    )
    assert list(ours) == list(theirs)
    np.testing.assert_array_equal(list(ours.values()), list(theirs.values()))
    assert 0.1 < ours['bbox_mAP'] < 0.9


@needs_sample
def test_coco_with_a_third_of_its_boxes_marked_can_be_solved(tmp_path):
    content = json.loads((SAMPLE / 'instances_val.json').read_text())
    classes = tuple(category['name'] for category in content['categories'])
    for a in content['annotations'][::3]:
        a['ignore'] = 1
    file = tmp_path / 'truth.json'
    file.write_text(json.dumps(content))
    everything = perfect(content)
    content['annotations'] = [a for a in content['annotations'] if not a.get('ignore')]
    for samples in (perfect(content), everything):
        assert score(file, samples, classes)['bbox_mAP'] == pytest.approx(1)


# In mmengine.


def test_it_is_built_by_its_name_and_mmdets_by_theirs(tmp_path):
    file = str(write_truth(tmp_path / 'truth.json', []))
    kinds = {
        'ddetr_plugin.CocoMetric': CocoMetric,
        'mmdet.CocoMetric': MMDetCocoMetric,
    }
    for name, kind in kinds.items():
        (metric,) = Evaluator(dict(type=name, ann_file=file)).metrics
        assert type(metric) is kind
        assert metric.prefix == 'coco'
