"""Panoptic quality: mmdet's numbers, and a result where there are no things or no stuff."""

import copy
import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from panoptic_cases import CATEGORIES, METAINFO, NUM_CLASSES, make_scene, write_scenes

from ddetr_plugin.evaluation import CocoPanopticMetric, panoptic_metric
from ddetr_plugin.models.losses.assigner import NotFiniteError

# isort: split
from mmdet.evaluation import CocoPanopticMetric as MMDetCocoPanopticMetric
from mmdet.evaluation.functional import INSTANCE_OFFSET

pytest.importorskip('panopticapi', reason='panopticapi is not installed')

IDS = [category_id for category_id, _, _ in CATEGORIES]
THINGS, STUFF = IDS[:2], IDS[2:]
ALL, OF_THINGS, OF_STUFF = (tuple(f'{q}Q{p}' for q in 'PSR') for p in ('', '_th', '_st'))


def scenes(kept=IDS, count=3) -> list:
    """Scenes with the segments of some categories only; the rest is void."""
    made = []
    for seed in range(count):
        scene = make_scene(seed, crowd=True)
        segments = [s for s in scene.segments if s[1] in kept]
        ids = np.where(np.isin(scene.ids, [s[0] for s in segments]), scene.ids, 0)
        made.append(scene._replace(ids=ids, segments=segments))
    return made


def samples_of(scenes, shift=0) -> list:
    """Data samples that predict the scenes, moved to the right by `shift` pixels."""
    samples = []
    for number, scene in enumerate(scenes, 1):
        coded = np.full(scene.ids.shape, NUM_CLASSES)
        for i, (segment, category, crowd) in enumerate(scene.segments, 1):
            if not crowd:
                label = IDS.index(category)
                instance = INSTANCE_OFFSET * i if category in THINGS else 0
                coded[np.roll(scene.ids == segment, shift, 1)] = label + instance
        samples.append(
            dict(
                img_id=number,
                img_path=f'images/{number}.jpg',
                ori_shape=scene.ids.shape,
                pred_panoptic_seg=dict(sem_seg=torch.from_numpy(coded)[None]),
            )
        )
    return samples


def quality(file, samples, kind=CocoPanopticMetric, classes=METAINFO, **options) -> dict:
    metric = kind(ann_file=str(file), seg_prefix=str(file.parent / 'segments'), nproc=1, **options)
    metric.dataset_meta = classes
    metric.process({}, copy.deepcopy(samples))
    return {k.split('/')[1]: v for k, v in metric.evaluate(len(samples)).items()}


@pytest.mark.parametrize('to_files', [False, True])
def test_on_ordinary_data_names_and_numbers_are_those_of_mmdet(to_files, tmp_path):
    made = scenes()
    file = write_scenes(tmp_path / 'data', made)
    found = []
    for name, kind in (('ours', CocoPanopticMetric), ('theirs', MMDetCocoPanopticMetric)):
        options = dict(outfile_prefix=str(tmp_path / name)) if to_files else {}
        found.append(quality(file, samples_of(made, shift=2), kind, classwise=True, **options))
    ours, theirs = found
    assert ours == theirs
    assert tuple(ours) == ALL + OF_THINGS + OF_STUFF
    assert 0 < ours['PQ'] < 100


@pytest.mark.parametrize('to_files', [False, True])
@pytest.mark.parametrize(
    ('kept', 'names'), [(THINGS, ALL + OF_THINGS), (STUFF, ALL + OF_STUFF)], ids=['things', 'stuff']
)
def test_the_part_that_is_empty_is_left_out(kept, names, to_files, tmp_path):
    made = scenes(kept)
    file = write_scenes(tmp_path / 'data', made)
    options = dict(outfile_prefix=str(tmp_path / 'found')) if to_files else {}
    results = quality(file, samples_of(made), classwise=True, **options)
    assert results == dict.fromkeys(names, 100)
    # The premise.
    with pytest.raises(ZeroDivisionError):
        quality(file, samples_of(made), MMDetCocoPanopticMetric)


def test_categories_without_stuff_have_the_quality_of_their_things(tmp_path):
    made = scenes(THINGS)
    file = write_scenes(tmp_path / 'data', made, CATEGORIES[:2])
    classes = METAINFO['thing_classes']
    meta = dict(classes=classes, thing_classes=classes, stuff_classes=())
    samples = samples_of(made)
    for sample in samples:
        coded = sample['pred_panoptic_seg']['sem_seg']
        coded[coded == NUM_CLASSES] = len(classes)
    results = quality(file, samples, classes=meta)
    assert results == dict.fromkeys(ALL + OF_THINGS, 100)


def test_stuff_that_is_predicted_where_there_is_none_counts(tmp_path):
    """A part is empty only if it is in neither, so that predicting it is no way out."""
    both, things = scenes(), scenes(THINGS)
    for scene in things:
        # What is predicted on void is not counted; one segment of a thing covers it.
        scene.ids[scene.ids == 0] = scene.segments[0][0]
    file = write_scenes(tmp_path / 'data', things)
    results = quality(file, samples_of(both))
    assert results['PQ_st'] == 0
    assert results['PQ'] < 100


def test_without_any_segment_there_is_no_quality(tmp_path):
    made = scenes([])
    file = write_scenes(tmp_path / 'data', made)
    assert quality(file, samples_of(made), classwise=True) == {}


def test_classes_are_named_by_their_ids_in_a_subset(tmp_path, monkeypatch):
    made = scenes([7, 92])
    file = write_scenes(tmp_path / 'data', made)
    meta = dict(classes=('bar', 'sky'), thing_classes=('bar',), stuff_classes=('sky',))
    samples = samples_of(made)
    for sample in samples:
        coded = sample['pred_panoptic_seg']['sem_seg']
        void = coded == NUM_CLASSES
        coded -= 1  # of four classes, the second and the third
        coded[void] = 2
    printed = []
    monkeypatch.setattr(
        panoptic_metric, 'print_panoptic_table', lambda parts, named, logger: printed.append(named)
    )
    quality(file, samples, classes=meta, classwise=True)
    (named,) = printed
    assert {name: values['pq'] for name, values in named.items()} == {'bar': 1, 'sky': 1}


@pytest.mark.parametrize('field', ['bboxes', 'scores'])
def test_boxes_and_scores_must_be_finite_here_too(field, tmp_path):
    made = scenes(count=1)
    file = write_scenes(tmp_path / 'data', made)
    (sample,) = samples_of(made)
    sample['pred_instances'] = dict(bboxes=torch.ones(2, 4), scores=torch.ones(2))
    assert quality(file, [sample])['PQ'] == 100
    sample['pred_instances'][field][1] = math.nan
    with pytest.raises(NotFiniteError, match=r'detection 1 on image 1 \(images/1\.jpg\)'):
        quality(file, [sample])


def test_no_image_at_all_is_an_error(tmp_path):
    file = write_scenes(tmp_path / 'data', scenes(count=1))
    with pytest.raises(ValueError, match='no image to evaluate'):
        quality(file, [])


def test_files_need_a_prediction_of_every_image(tmp_path):
    made = scenes()
    file = write_scenes(tmp_path / 'data', made)
    with pytest.raises(ValueError, match='1 images of the annotations have no prediction'):
        quality(file, samples_of(made)[:2], outfile_prefix=str(tmp_path / 'found'))


def test_it_is_built_by_its_name_and_mmdets_by_theirs(tmp_path):
    file = str(write_scenes(tmp_path / 'data', scenes(count=1)))
    kinds = {
        'ddetr_plugin.CocoPanopticMetric': CocoPanopticMetric,
        'mmdet.CocoPanopticMetric': MMDetCocoPanopticMetric,
    }
    for name, kind in kinds.items():
        (metric,) = Evaluator(dict(type=name, ann_file=file)).metrics
        assert type(metric) is kind
        assert metric.prefix == 'coco_panoptic'
