"""Prediction feeds a model what the Runner's test feeds it, whatever the config loads and wraps."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.apis import Detector, PredictionPipeline, category_ids
from ddetr_plugin.datasets import UnreadableImageError
from ddetr_plugin.registry import MODELS

RESIZE_AND_PACK = [
    dict(type='Resize', scale=(96, 80), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
VOC_BOX = """<annotation><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>4</xmin><ymin>4</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object></annotation>"""


def noise(channels, dtype):
    highest = np.iinfo(dtype).max // 16  # As of a sensor that uses 12 bits of 16.
    values = np.random.default_rng(0).integers(0, highest, (48, 64, channels), dtype=dtype)
    return values if channels > 1 else values[..., 0]


def coco_dataset(folder, loader, image):
    name = 'image.png'
    cv2.imwrite(str(folder / name), image)
    content = dict(
        images=[dict(id=7, file_name=name, width=64, height=48)],
        annotations=[
            dict(id=1, image_id=7, category_id=5, bbox=[4, 4, 20, 20], area=400, iscrowd=0)
        ],
        categories=[dict(id=5, name='cat')],
    )
    (folder / 'annotations.json').write_text(json.dumps(content))
    return dict(
        type='CocoDataset',
        ann_file=str(folder / 'annotations.json'),
        data_prefix=dict(img=str(folder)),
        metainfo=dict(classes=('cat',)),
        test_mode=True,
        pipeline=[loader, *RESIZE_AND_PACK],
    )


def voc_dataset(folder, loader, image):
    root = folder / 'VOC2007'
    for name in ('JPEGImages', 'Annotations', 'ImageSets'):
        (root / name).mkdir(parents=True)
    cv2.imwrite(str(root / 'JPEGImages' / 'image.jpg'), image)
    (root / 'Annotations' / 'image.xml').write_text(VOC_BOX)
    (root / 'ImageSets' / 'test.txt').write_text('image\n')
    return dict(
        type='VOCDataset',
        data_root=str(folder),
        ann_file='VOC2007/ImageSets/test.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        metainfo=dict(classes=('cat',)),
        test_mode=True,
        pipeline=[loader, *RESIZE_AND_PACK],
    )


def repeated(folder, loader, image):
    return dict(type='RepeatDataset', times=2, dataset=coco_dataset(folder, loader, image))


def concatenated(folder, loader, image):
    part = coco_dataset(folder, loader, image)
    return dict(type='ConcatDataset', datasets=[part, part])


LOAD = dict(type='LoadImageFromFile')
AS_IT_IS = dict(type='LoadImageFromFile', color_type='unchanged')
CASES = {
    '8 bits': (coco_dataset, LOAD, noise(3, np.uint8)),
    '8 bits, grey': (
        coco_dataset,
        dict(type='LoadImageFromFile', color_type='grayscale'),
        noise(1, np.uint8),
    ),
    '4 channels': (coco_dataset, AS_IT_IS, noise(4, np.uint8)),
    '16 bits': (coco_dataset, AS_IT_IS, noise(3, np.uint16)),
    '16 bits, grey': (coco_dataset, AS_IT_IS, noise(1, np.uint16)),
    '16 bits, 4 channels, float': (
        coco_dataset,
        dict(type='LoadImageFromFile', color_type='unchanged', to_float32=True),
        noise(4, np.uint16),
    ),
    'checked loader': (
        coco_dataset,
        dict(type='ddetr_plugin.LoadImageChecked', load=dict(type='LoadImageFromFile')),
        noise(3, np.uint8),
    ),
    'VOC': (voc_dataset, LOAD, noise(3, np.uint8)),
    'RepeatDataset': (repeated, LOAD, noise(3, np.uint8)),
    'ConcatDataset': (concatenated, LOAD, noise(3, np.uint8)),
}


@pytest.mark.parametrize('name', CASES)
def test_an_image_is_what_the_test_data_set_gives(tmp_path, name):
    make, loader, image = CASES[name]
    init_default_scope('mmdet')
    dataset = make(tmp_path, loader, image)
    config = Config(dict(test_dataloader=dict(dataset=dataset)))
    before = config.pretty_text
    expected = DATASETS.build(dataset)[0]
    sample = expected['data_samples']
    packed, _ = PredictionPipeline(config)(sample.img_path, sample.img_id)
    assert config.pretty_text == before
    assert packed['inputs'].dtype == expected['inputs'].dtype
    assert torch.equal(packed['inputs'], expected['inputs'])
    assert packed['inputs'].float().std() > 0
    assert packed['data_samples'].metainfo == sample.metainfo


@pytest.mark.parametrize('channels', [1, 4])
def test_a_model_of_other_channels_predicts_and_draws(tiny_job, tmp_path, channels):
    config = Config.fromfile(tiny_job())
    config.model.backbone.in_channels = channels
    config.model.data_preprocessor = dict(type='DetDataPreprocessor', mean=[100.0], std=[50.0])
    image = noise(channels, np.uint16)
    config.test_dataloader.dataset = coco_dataset(tmp_path, AS_IT_IS, image)
    init_default_scope('mmdet')
    model = MODELS.build(config.model).eval()
    detector = Detector.from_model(model, config, ('cat',) * 3)
    found = detector.one(tmp_path / 'image.png', score_thr=0, keep_images=True)
    assert len(found) > 0 and found.size == (48, 64)
    assert found.image.shape == (48, 64, 3)
    assert found.image.max() == 255, 'dark data must be brightened for the eye'


def test_a_config_whose_loader_resizes_draws_on_the_whole_image(tiny_job, tmp_path):
    loader = dict(type='ddetr_plugin.LoadImageResized', scale=(32, 24), keep_ratio=True)
    config = Config.fromfile(tiny_job())
    image = noise(3, np.uint8)
    config.test_dataloader.dataset = coco_dataset(tmp_path, loader, image)
    del config.test_dataloader.dataset.pipeline[1]
    init_default_scope('mmdet')
    model = MODELS.build(config.model).eval()
    detector = Detector.from_model(model, config, ('cat',) * 3)
    found = detector.one(tmp_path / 'image.png', keep_images=True)
    assert found.size == (48, 64)
    assert np.array_equal(found.image, image)


def test_an_error_of_the_loader_is_the_images_and_one_of_a_later_step_is_not(tmp_path):
    init_default_scope('mmdet')
    dataset = coco_dataset(tmp_path, LOAD, noise(3, np.uint8))
    pipeline = PredictionPipeline(Config(dict(test_dataloader=dict(dataset=dataset))))
    (tmp_path / 'text.png').write_text('text')
    with pytest.raises(UnreadableImageError):
        pipeline(tmp_path / 'text.png')
    cv2.imwrite(str(tmp_path / 'thin.png'), np.zeros((3000, 1, 3), np.uint8))
    with pytest.raises(cv2.error, match='resize'):
        pipeline(tmp_path / 'thin.png')


def test_categories_have_the_ids_of_the_file_that_names_them(tmp_path):
    init_default_scope('mmdet')
    for make, expected in ((coco_dataset, [5]), (concatenated, [5]), (voc_dataset, [1])):
        folder = tmp_path / make.__name__
        folder.mkdir()
        dataset = make(folder, LOAD, noise(3, np.uint8))
        config = Config(dict(test_dataloader=dict(dataset=dataset)))
        assert category_ids(config, ['cat']) == expected


def test_a_config_without_a_pipeline_is_refused_with_the_remedy():
    for config in (Config({}), Config(dict(test_dataloader=None))):
        with pytest.raises(ValueError, match='work folder'):
            PredictionPipeline(config)
