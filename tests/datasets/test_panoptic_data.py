"""Panoptic annotations as instances: boxes of masks, crowds ignored, COCO's classes, PQ."""

from pathlib import Path

import numpy as np
import pytest
import torch

import ddetr_plugin  # noqa: F401  before mmdet

# isort: split
from mmdet.datasets import CocoPanopticDataset
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from panoptic_cases import CATEGORIES, METAINFO, NUM_THINGS, Scene, make_scene, write_scenes
from PIL import Image

from ddetr_plugin.config_files import find_config
from ddetr_plugin.models import panoptic_map
from ddetr_plugin.registry import TRANSFORMS

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT.parent / 'shared' / 'data' / 'coco_sample'
CONFIG = Config.fromfile(find_config('deformable-detr-panoptic_r50_16xb2-50e_coco'))
# Ids of COCO's 133 panoptic categories, in the order of its files.
THING_IDS = sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
STUFF_IDS = [92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145]
STUFF_IDS += [147, 148, 149, 151, 154, 155, 156, 159, 161, 166, 168, 171, *range(175, 179), 180]
STUFF_IDS += [181, *range(184, 201)]
SPOT_CHECKS = {'person': 1, 'stop sign': 13, 'toothbrush': 90, 'banner': 92, 'road': 149}
SPOT_CHECKS |= {'tree-merged': 184, 'sky-other-merged': 187, 'rug-merged': 200}


def dataset_config(file, num_things=NUM_THINGS, metainfo=METAINFO, images=None):
    """A CocoPanopticDataset loaded as the config's validation loads it, but not resized."""
    pipeline = CONFIG.val_dataloader.dataset.pipeline
    steps = [pipeline[0], dict(pipeline[2], num_things=num_things), pipeline[3]]
    steps[2] = dict(steps[2], meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))
    return dict(
        type='CocoPanopticDataset',
        ann_file=str(file),
        data_prefix=dict(
            img=str(images or file.parent / 'images'), seg=str(file.parent / 'segments')
        ),
        metainfo=metainfo,
        pipeline=steps,
        test_mode=True,
    )


def load(file, **arguments) -> list[DetDataSample]:
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(dataset_config(file, **arguments))
        return [sample['data_samples'] for sample in dataset]


def instances_by_definition(scene, png, ids):
    """(box, label, ignored, pixels) of each segment, from the file's bytes pixel by pixel."""
    pixels = np.asarray(Image.open(png)).tolist()
    found = []
    for segment, category, crowd in scene.segments:
        inside = {
            (x, y)
            for y, row in enumerate(pixels)
            for x, (r, g, b) in enumerate(row)
            if r + 256 * g + 65536 * b == segment
        }
        columns, rows = zip(*inside)
        box = [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
        found.append((box, ids.index(category), bool(crowd), inside))
    return found


def test_every_segment_is_an_instance_with_the_box_of_its_mask_and_crowds_are_ignored(tmp_path):
    scenes = [make_scene(seed, crowd=seed > 0) for seed in range(3)]
    samples = load(write_scenes(tmp_path, scenes))
    for number, (scene, sample) in enumerate(zip(scenes, samples), 1):
        expected = instances_by_definition(
            scene, tmp_path / 'segments' / f'{number}.png', [c[0] for c in CATEGORIES]
        )
        for ignored in (False, True):
            instances = sample.ignored_instances if ignored else sample.gt_instances
            wanted = [each[:2] + each[3:] for each in expected if each[2] == ignored]
            masks = [set(zip(*np.nonzero(m)[::-1])) for m in instances.masks.masks]
            found = zip(instances.bboxes.tensor.tolist(), instances.labels.tolist(), masks)
            assert list(found) == wanted
    counts = [(len(s.gt_instances), len(s.ignored_instances)) for s in samples]
    assert counts == [(4, 0), (4, 1), (4, 1)]
    assert samples[0].gt_instances.bboxes.dtype == torch.float32


def test_things_are_loaded_as_mmdet_loads_them(tmp_path):
    pytest.importorskip('panopticapi', reason='panopticapi is not installed')
    file = write_scenes(tmp_path, [make_scene(5, crowd=True)])
    config = dataset_config(file)
    config['pipeline'][1] = dict(type='LoadPanopticAnnotations', with_bbox=False, with_seg=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        theirs = DATASETS.build(config)[0]['data_samples'].gt_instances
    (ours,) = load(file)
    ours = ours.gt_instances[ours.gt_instances.labels < NUM_THINGS]
    assert len(ours) == 2
    assert ours.labels.tolist() == theirs.labels.tolist()
    assert (ours.masks.masks == theirs.masks.masks).all()


def test_a_segment_without_a_pixel_is_ignored_and_a_picture_without_segments_has_none(tmp_path):
    scene = make_scene(0)
    gone = Scene(scene.picture, scene.ids, [*scene.segments, (123, 7, 0)])
    empty = Scene(scene.picture, np.zeros_like(scene.ids), [])
    first, second = load(write_scenes(tmp_path, [gone, empty]))
    assert (len(first.gt_instances), first.ignored_instances.labels.tolist()) == (4, [1])
    assert len(second.gt_instances) == len(second.gt_instances.masks) == 0
    assert second.gt_instances.bboxes.shape == (0, 4)


def step(**arguments):
    return TRANSFORMS.build(dict(type='ddetr_plugin.LoadPanopticInstances', **arguments))


def test_without_ground_truth_nothing_is_loaded():
    assert step(num_things=80)(dict(img_path='a.jpg')) == dict(img_path='a.jpg')


def test_what_does_not_fit_is_refused_with_the_file_and_the_remedy(tmp_path):
    file = write_scenes(tmp_path, [make_scene(0)])
    with pytest.raises(ValueError, match='list things before stuff in the categories'):
        load(file, num_things=1)
    with pytest.raises(ValueError, match='num_things must be 0 or more'):
        step(num_things=-1)
    picture = tmp_path / 'segments' / '1.png'
    truncated = picture.read_bytes()[:-20]
    Image.new('RGB', (64, 40)).save(picture)
    with pytest.raises(ValueError, match=r'1\.png is 40 x 64 pixels .* its picture 48 x 64'):
        load(file)
    for content in (b'', b'no picture', truncated):
        picture.write_bytes(content)
        with pytest.raises(ValueError, match='1.png cannot be decoded'):
            load(file)


def test_cocos_categories_become_things_0_to_79_and_stuff_80_to_132(tmp_path):
    names = CocoPanopticDataset.METAINFO['classes']
    assert (len(THING_IDS), len(STUFF_IDS), len(names)) == (80, 53, 133)
    ids = dict(zip(names, THING_IDS + STUFF_IDS))
    assert {name: ids[name] for name in SPOT_CHECKS} == SPOT_CHECKS
    # One row of pixels each.
    segments = [(1000 + 7 * category, category, 0) for category in THING_IDS + STUFF_IDS]
    rows = np.array([segment for segment, _, _ in segments])[:, None].repeat(9, 1)
    scene = Scene(np.zeros((*rows.shape, 3), np.uint8), rows, segments)
    categories = [(i, name, int(i in THING_IDS)) for name, i in ids.items()]
    file = write_scenes(tmp_path, [scene], categories)
    dataset, head = CONFIG.val_dataloader.dataset, CONFIG.model.mask_head
    assert dataset.type == 'CocoPanopticDataset'
    (sample,) = load(file, num_things=dataset.pipeline[2].num_things, metainfo=None)
    assert sample.gt_instances.labels.tolist() == list(range(133))
    tops = sample.gt_instances.bboxes.tensor[:, 1]
    assert tops.tolist() == list(range(133))
    things = len(CocoPanopticDataset.METAINFO['thing_classes'])
    assert things == head.num_things == dataset.pipeline[2].num_things == 80
    assert head.num_classes == CONFIG.model.bbox_head.num_classes == 133


def quality(file, samples, maps, metainfo=METAINFO):
    """mmdet's metrics of maps (h, w) that are predicted for samples."""
    from mmdet.evaluation import CocoPanopticMetric

    metric = CocoPanopticMetric(ann_file=str(file), seg_prefix=str(file.parent / 'segments'))
    metric.dataset_meta = metainfo
    for sample, coded in zip(samples, maps):
        predicted = DetDataSample(metainfo=sample.metainfo)
        predicted.pred_panoptic_seg = PixelData(sem_seg=coded[None])
        metric.process({}, [predicted.to_dict()])
    return metric.evaluate(len(samples))


def merged(sample, num_things, num_classes, labels=None):
    """The map of the ground truth's own masks, merged as predictions are."""
    instances = sample.gt_instances
    labels = instances.labels if labels is None else labels
    logits = torch.from_numpy(instances.masks.masks).double() * 20 - 10
    # No mask covers a crowd; there nothing is predicted.
    void = ~instances.masks.masks.any(0)
    coded = panoptic_map(logits, labels, num_things, num_classes, min_area=0)
    coded[torch.from_numpy(void)] = num_classes
    return coded


def test_the_ground_truth_has_perfect_quality_and_exchanged_classes_have_none(tmp_path):
    pytest.importorskip('panopticapi', reason='panopticapi is not installed')
    file = write_scenes(tmp_path, [make_scene(seed, crowd=True) for seed in range(3)])
    samples = load(file)
    perfect = quality(file, samples, [merged(s, 2, 4) for s in samples])
    assert {name: perfect[f'coco_panoptic/{name}'] for name in ('PQ', 'PQ_th', 'PQ_st')} == {
        'PQ': 100, 'PQ_th': 100, 'PQ_st': 100
    }  # fmt: skip
    # Sky and road exchanged.
    swap = torch.tensor([0, 1, 3, 2])
    wrong = [merged(s, 2, 4, swap[s.gt_instances.labels]) for s in samples]
    scores = quality(file, samples, wrong)
    assert (scores['coco_panoptic/PQ_th'], scores['coco_panoptic/PQ_st']) == (100, 0)


@pytest.mark.skipif(
    not SAMPLE.is_dir(), reason='../shared/data/coco_sample is not there; it has the polygons'
)
def test_real_pictures_whose_polygons_are_segments_have_perfect_quality(tmp_path):
    pytest.importorskip('panopticapi', reason='panopticapi is not installed')
    from pycocotools.coco import COCO

    coco = COCO(str(SAMPLE / 'annotations' / 'instances_val.json'))
    # What no polygon covers is stuff of one class.
    categories = [(c['id'], c['name'], 1) for c in coco.dataset['categories']]
    categories.append((183, 'other', 0))
    known = {i: name for i, name, _ in categories}
    names = tuple(known.values())
    scenes, expected = [], []
    for image in coco.loadImgs(sorted(coco.imgs)[:6]):
        ids = np.full((image['height'], image['width']), 99)
        segments = [(99, 183, 0)]
        # Small ones in front: no two segments may share a pixel.
        boxes = sorted(coco.imgToAnns[image['id']], key=lambda a: (-a['iscrowd'], -a['area']))
        for number, box in enumerate(boxes, 1):
            ids[coco.annToMask(box) > 0] = number * 70001
            segments.append((number * 70001, box['category_id'], box['iscrowd']))
        segments = [segment for segment in segments if segment[0] in ids]
        scenes.append(Scene(np.zeros((*ids.shape, 3), np.uint8), ids, segments))
        expected.append([known[category] for _, category, crowd in segments if not crowd])
    file = write_scenes(tmp_path, scenes, categories)
    metainfo = dict(classes=names, thing_classes=names[:-1], stuff_classes=names[-1:])
    samples = load(file, num_things=len(names) - 1, metainfo=metainfo)
    found = [[names[label] for label in s.gt_instances.labels] for s in samples]
    assert found == expected and sum(map(len, found)) > 20
    maps = [merged(s, len(names) - 1, len(names)) for s in samples]
    perfect = quality(file, samples, maps, metainfo)
    assert perfect['coco_panoptic/PQ_th'] == perfect['coco_panoptic/PQ_st'] == 100
