"""What docs/parity.md says of resizing, data, norms and evaluation, and no other test shows."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from ddetr_plugin.config_files import find_config
from ddetr_plugin.datasets.official_resize import official_size
from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_reference
from ddetr_plugin.registry import MODELS, TRANSFORMS

ROOT = Path(__file__).resolve().parents[2]
BASE = find_config('deformable-detr_r50_16xb2-50e_coco')
OFFICIAL = find_config('deformable-detr_r50_official-eval_coco')


# Sizes of pictures of COCO and what the official code makes of them, by hand.
@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        ((640, 480), (1066, 800)),  # 1066.67: mmdet rounds to 1067
        ((480, 640), (800, 1066)),
        ((640, 427), (1199, 800)),
        ((800, 800), (800, 800)),
        ((1200, 800), (1200, 800)),
        ((640, 360), (1333, 750)),  # 749.8 is rounded, then 750 / 360 * 640 = 1333.3 is cut
        ((500, 100), (1335, 267)),  # 266.6 is rounded up: the long side exceeds the limit
    ],
)
def test_d5_the_official_size_rounds_the_long_side_down(size, expected):
    assert official_size(*size, 1333, 800) == expected


def test_d5_the_official_pipeline_resizes_as_pillow_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (97, 130, 3), dtype=np.uint8)
    file = tmp_path / 'x.png'
    Image.fromarray(pixels).save(file)
    config = Config.fromfile(OFFICIAL)
    results = dict(img_path=str(file), img_id=0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        for step in config.test_dataloader.dataset.pipeline[:2]:
            results = TRANSFORMS.build(step)(results)
    wanted = Image.fromarray(pixels).resize((1072, 800), Image.Resampling.BILINEAR)
    assert official_size(130, 97, 1333, 800) == (1072, 800)
    assert np.array_equal(results['img'][..., ::-1], np.asarray(wanted))
    assert results['img_shape'] == (800, 1072)
    assert results['scale_factor'] == pytest.approx((1072 / 130, 800 / 97))


@pytest.mark.parametrize(
    ('scale', 'size', 'expected'),
    [
        ((1333, 480), (640, 480), (640, 480)),
        ((480, 1333), (640, 427), (719, 480)),  # 719.4; the order is mmdet's either way
        (400, (640, 427), (599, 400)),  # the short side alone, as before the official crop
        (600, (1000, 100), (6000, 600)),
    ],
)
def test_d5_random_choice_resize_resizes_as_the_official_code_does(scale, size, expected):
    """Boxes, too; sizes by hand, pixels by Pillow."""
    from mmdet.structures.bbox import HorizontalBoxes  # after ddetr_plugin

    config = dict(
        type='RandomChoiceResize',
        scales=[scale],
        resize_type='ddetr_plugin.OfficialResize',
        keep_ratio=True,
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        resize = TRANSFORMS.build(config)
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    boxes = HorizontalBoxes(torch.tensor([[1.0, 2.0, 90.0, 80.0]]))
    results = resize(dict(img=pixels, gt_bboxes=boxes))
    wanted = Image.fromarray(pixels).resize(expected, Image.Resampling.BILINEAR)
    assert np.array_equal(results['img'], np.asarray(wanted))
    assert results['img_shape'] == expected[::-1]
    ratios = torch.tensor([expected[0] / size[0], expected[1] / size[1]]).repeat(2)
    wanted = torch.tensor([[1.0, 2.0, 90.0, 80.0]]) * ratios
    torch.testing.assert_close(results['gt_bboxes'].tensor, wanted)


def test_d5_the_whole_training_pipeline_can_resize_as_the_official_code_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (427, 640, 3), dtype=np.uint8)
    file = tmp_path / 'x.png'
    Image.fromarray(pixels).save(file)
    pipeline = Config.fromfile(BASE).train_dataloader.dataset.pipeline
    resized = []
    for branch in pipeline[3].transforms:
        for step in branch:
            if step.type == 'RandomChoiceResize':
                step.resize_type = 'ddetr_plugin.OfficialResize'
                resized.append(step)
    assert len(resized) == 3
    instance = dict(bbox=[10, 20, 300, 400], bbox_label=0, ignore_flag=0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        steps = [TRANSFORMS.build(step) for step in pipeline]
    longest = set()
    for _ in range(6):
        results = dict(img_path=str(file), img_id=0, instances=[instance], height=427, width=640)
        for step in steps:
            results = step(results)
        shape = results['data_samples'].img_shape
        assert shape == tuple(results['inputs'].shape[1:])
        assert min(shape) >= 480 and max(shape) <= 1333
        longest.add(max(shape))
    assert len(longest) > 1


@pytest.mark.parametrize('scale', [0, -3, (0, 800), (1333, 800, 3), ()])
def test_d5_a_scale_that_is_no_size_is_refused_when_it_is_used(scale):
    resize = TRANSFORMS.build(dict(type='ddetr_plugin.OfficialResize', scale=scale))
    with pytest.raises(ValueError, match='scale must be'):
        resize(dict(img=np.zeros((4, 4, 3), np.uint8)))


def test_d5_a_resize_that_does_not_keep_the_ratio_is_refused():
    with pytest.raises(ValueError, match='keep_ratio=False'):
        TRANSFORMS.build(dict(type='ddetr_plugin.OfficialResize', scale=(8, 8), keep_ratio=False))


def test_d6_d7_every_picture_is_kept_and_batches_have_one_orientation():
    loader = Config.fromfile(BASE).train_dataloader
    assert loader.batch_sampler.type == 'AspectRatioBatchSampler'
    assert loader.dataset.filter_cfg == dict(filter_empty_gt=False)


PICTURE = dict(file_name='x.png', height=40, width=60)
# (box, area, crowd): the second to fourth are those that mmdet leaves out and the official code
# does not; of the last two nothing is inside the picture.
BOXES = [
    ((5, 5, 20, 20), 400, 0),
    ((5, 5, 0.5, 20), 10, 0),
    ((30, 5, 20, 0.25), 5, 0),
    ((30, 20, 10, 10), 0, 0),
    ((5, 5, 10, 10), 100, 1),
    ((5, 5, 0, 20), 0, 0),
    ((60, 5, 0.5, 20), 10, 0),
]


def coco(folder, pictures, boxes):
    """An annotation file of `pictures`, the first of which has `boxes`."""
    images = [dict(PICTURE, id=i, **sizes) for i, sizes in enumerate(pictures, 1)]
    annotations = [
        dict(id=i, image_id=1, category_id=3, bbox=list(box), area=area, iscrowd=crowd)
        for i, (box, area, crowd) in enumerate(boxes, 1)
    ]
    categories = [dict(id=3, name='car')]
    file = folder / 'coco.json'
    content = dict(images=images, annotations=annotations, categories=categories)
    file.write_text(json.dumps(content))
    names = dict(classes=('car',))
    return dict(ann_file=str(file), metainfo=names, data_prefix=dict(img=''), pipeline=[])


def test_d7_small_pictures_and_those_without_boxes_are_kept(tmp_path):
    filters = Config.fromfile(BASE).train_dataloader.dataset.filter_cfg
    files = coco(tmp_path, [{}, {}, dict(width=20, height=8)], BOXES)
    with DefaultScope.overwrite_default_scope('mmdet'):
        ours = DATASETS.build(dict(type='CocoDataset', filter_cfg=filters, **files))
        # What mmdet's own configs have.
        usual = dict(filter_empty_gt=True, min_size=32)
        theirs = DATASETS.build(dict(type='CocoDataset', filter_cfg=usual, **files))
    assert (len(ours), len(theirs)) == (3, 1)


def test_d7_every_box_of_which_a_part_is_inside_is_kept_on_demand(tmp_path):
    files = coco(tmp_path, [{}], BOXES)
    found = {}
    for kind in ('CocoDataset', 'ddetr_plugin.OfficialCocoDataset'):
        with DefaultScope.overwrite_default_scope('mmdet'):
            (info,) = DATASETS.build(dict(type=kind, **files)).load_data_list()
        found[kind] = {
            (x1, y1, x2 - x1, y2 - y1): instance['ignore_flag']
            for instance in info['instances']
            for x1, y1, x2, y2 in [instance['bbox']]
        }
        assert {instance['bbox_label'] for instance in info['instances']} == {0}
    assert found['CocoDataset'] == {BOXES[0][0]: 0, BOXES[4][0]: 1}
    # What is inside is wider and higher than nothing; crowds are marked, and not trained on.
    assert found['ddetr_plugin.OfficialCocoDataset'] == {box: crowd for box, _, crowd in BOXES[:5]}


def test_d7_the_dataset_brings_the_names_of_coco():
    from ddetr_plugin.datasets.class_names import dataset_classes

    config = dict(train_dataloader=dict(dataset=dict(type='ddetr_plugin.OfficialCocoDataset')))
    assert len(dataset_classes(config)) == 80


@pytest.mark.parametrize('official', [False, True])
def test_d6_batches_have_one_orientation_unless_that_is_turned_off(tmp_path, official):
    shapes = [dict(width=60, height=40), dict(width=40, height=60)] * 9 + [{}]
    config = Config.fromfile(BASE)
    if official:
        config.merge_from_dict(
            {'train_dataloader.batch_sampler': None, 'train_dataloader.drop_last': True}
        )
    loader = config.train_dataloader
    loader.update(num_workers=0, persistent_workers=False, batch_size=3)
    loader.dataset = dict(
        type='CocoDataset',
        filter_cfg=loader.dataset.filter_cfg,
        **coco(tmp_path, shapes, []),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        batches = list(Runner.build_dataloader(loader, seed=0))
    mixed = [len({width > height for width, height in sizes(batch)}) == 2 for batch in batches]
    assert any(mixed) == official
    # The official sampler drops what does not fill a batch.
    lengths = [len(list(sizes(batch))) for batch in batches]
    assert lengths == [3] * 6 + [1] * (not official)


def sizes(batch):
    return zip(batch['width'], batch['height'])


def test_d11_a_picture_has_no_more_detections_than_the_official_metric_looks_at():
    config = Config.fromfile(OFFICIAL)
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        assert MODELS.build(config.model).bbox_head.max_per_img == 100
    assert config.test_evaluator.proposal_nums == (1, 10, 100)


def test_d13_batch_norm_in_evaluation_is_the_official_frozen_one():
    """Which is x * scale + shift with scale = weight / sqrt(variance + 1e-5)."""
    norm = torch.nn.BatchNorm2d(16).eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.uniform_(0.1, 3)
    x = torch.randn(2, 16, 9, 7) * 5
    scale = norm.weight * (norm.running_var + 1e-5).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    frozen = x * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(norm(x), frozen, rtol=1e-5, atol=1e-5)


def test_d19_a_batch_of_more_than_64_that_64_does_not_divide():
    shapes = torch.tensor([[2, 3]])
    value = torch.randn(65, 6, 2, 4)
    locations, weights = torch.rand(65, 5, 2, 1, 2, 2), torch.rand(65, 5, 2, 1, 2)
    arguments = (value, shapes, torch.tensor([0]), locations, weights)
    torch.testing.assert_close(ms_deform_attn(*arguments), ms_deform_attn_reference(*arguments))


def test_every_deviation_is_in_the_table_once_with_tests_that_exist():
    text = (ROOT / 'docs' / 'parity.md').read_text()
    rows = re.findall(r'^\| (D\d+) \|.*\| ([^|]+) \|$', text, re.MULTILINE)
    assert [row for row, _ in rows] == [f'D{i}' for i in range(1, 21)]
    files = {file.stem for file in (ROOT / 'tests').rglob('test_*.py')}
    for row, tests in rows:
        named = re.findall(r'`(\w+)`', tests)
        assert named, row
        assert set(named) <= files, row
