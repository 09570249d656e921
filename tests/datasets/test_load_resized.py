"""A picture decoded at reduced size is the picture that a full decoder would give, resized."""

import io
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps

from ddetr_plugin.datasets.load_resized import largest_reduction, read_jpeg_header

SAMPLE = Path(__file__).resolve().parents[3] / 'shared' / 'data' / 'coco_sample' / 'images'
SIZES = [(640, 480), (641, 479), (1009, 517), (397, 1603)]  # width, height
ANNOTATIONS = dict(type='LoadAnnotations', with_bbox=True)


@cache
def smooth_picture(width, height):
    """(height, width, 3) uint8 of slow waves, so that any good filter gives the same pixels."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(7 * x / width + k) * np.cos(5 * y / height + 2 * k) for k in range(3)]
    return np.uint8(128 + 100 * np.stack(waves, axis=-1))


def write_jpeg(path, picture, **options):
    Image.fromarray(picture).save(path, quality=95, subsampling=0, **options)
    return str(path)


def run(steps, path, boxes=((3.0, 5.0, 60.0, 70.0),)):
    """What a pipeline makes of a picture with boxes (x1, y1, x2, y2) in pixels."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = Compose(steps)
    instances = [dict(bbox=list(box), bbox_label=1, ignore_flag=0) for box in boxes]
    return pipeline(dict(img_path=path, img_id=0, instances=instances))


def load_ours(path, **arguments):
    resize = dict(type='ddetr_plugin.LoadImageResized', **arguments)
    return run([ANNOTATIONS, resize], path)


def load_stock(path, **arguments):
    resize = dict(type='Resize', **arguments)
    return run([dict(type='LoadImageFromFile'), ANNOTATIONS, resize], path)


def assert_same_geometry(ours, stock):
    assert ours.keys() == stock.keys()
    for key in ('ori_shape', 'img_shape', 'scale', 'scale_factor', 'keep_ratio'):
        assert ours[key] == stock[key], key
    assert ours['img'].shape == stock['img'].shape
    assert ours['img'].dtype == stock['img'].dtype
    assert ours['img'].flags.c_contiguous
    assert np.array_equal(ours['homography_matrix'], stock['homography_matrix'])
    assert np.array_equal(ours['gt_bboxes'].numpy(), stock['gt_bboxes'].numpy())


@pytest.mark.parametrize('keep_ratio', [True, False])
@pytest.mark.parametrize('scale', [(192, 192), (100, 37), (320, 250), (416, 352)])
@pytest.mark.parametrize('size', SIZES)
def test_sizes_factors_and_boxes_are_those_of_the_stock_pipeline(tmp_path, size, scale, keep_ratio):
    path = write_jpeg(tmp_path / 'x.jpg', smooth_picture(*size))
    arguments = dict(scale=scale, keep_ratio=keep_ratio)
    assert_same_geometry(load_ours(path, **arguments), load_stock(path, **arguments))


@pytest.mark.parametrize('size', SIZES)
def test_what_is_seen_lies_where_it_lies_in_the_whole_picture(tmp_path, size):
    """Each pixel is the colour at its centre in the whole picture, to the last column and row."""
    path = write_jpeg(tmp_path / 'x.jpg', smooth_picture(*size))
    got = load_ours(path, scale=(max(size) // 9,) * 2, keep_ratio=True)['img']
    height, width = got.shape[:2]
    y, x = np.mgrid[0:height, 0:width] + 0.5
    wanted = [np.sin(7 * x / width + k) * np.cos(5 * y / height + 2 * k) for k in range(3)]
    wanted = 128 + 100 * np.stack(wanted[::-1], axis=-1)
    # The sides change by up to 700 / width a pixel: half a pixel off would be many times this.
    assert np.abs(got - wanted).max() < 4
    assert np.abs(got - wanted).mean() < 1


@pytest.mark.parametrize(
    ('size', 'target', 'factor'),
    [
        ((640, 480), (192, 144), 2),
        ((640, 480), (160, 120), 4),
        ((639, 480), (160, 120), 2),
        ((640, 480), (321, 240), 1),
        ((640, 480), (320, 240), 2),
        ((4000, 3000), (384, 288), 8),
        ((480, 4000), (480, 10), 1),
        ((8, 8), (800, 800), 1),
    ],
)
def test_no_side_is_decoded_smaller_than_it_is_wanted(size, target, factor):
    assert largest_reduction(size, target) == factor


@pytest.mark.parametrize('keep_ratio', [True, False])
@pytest.mark.parametrize('size', [(801, 640), (643, 643)])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_picture_is_turned_as_exif_says(tmp_path, orientation, size, keep_ratio):
    """Against Pillow's own turning."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_jpeg(tmp_path / 'x.jpg', smooth_picture(*size), exif=exif)
    data = Path(path).read_bytes()
    with Image.open(path) as file:
        upright = np.asarray(ImageOps.exif_transpose(file))
    header = read_jpeg_header(data)
    assert header.upright(header.size) == upright.shape[1::-1]
    arguments = dict(scale=(200, 160), keep_ratio=keep_ratio)
    ours = load_ours(path, **arguments)
    assert_same_geometry(ours, load_stock(path, **arguments))
    assert ours['ori_shape'] == upright.shape[:2]
    height, width = ours['img_shape']
    wanted = cv2.resize(upright[..., ::-1], (width, height), interpolation=cv2.INTER_AREA)
    assert np.abs(ours['img'].astype(int) - wanted).max() <= 4


@pytest.mark.parametrize('orientation', [0, 9, 200])
def test_an_orientation_that_exif_does_not_know_turns_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write_jpeg(tmp_path / 'x.jpg', smooth_picture(640, 320), exif=exif)
    arguments = dict(scale=(100, 100), keep_ratio=True)
    assert_same_geometry(load_ours(path, **arguments), load_stock(path, **arguments))


def encoded(picture, kind, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


WHOLE = smooth_picture(640, 480)
KINDS = {
    'png': partial(encoded, WHOLE, 'PNG'),
    'webp': partial(encoded, WHOLE, 'WEBP', lossless=True),
    'broken EXIF': partial(encoded, WHOLE, 'JPEG', exif=b'Exif\0\0garbage'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_what_cannot_be_decoded_at_reduced_size_has_the_stock_pixels(tmp_path, kind):
    path = tmp_path / 'x.jpg'
    path.write_bytes(KINDS[kind]())
    arguments = dict(scale=(100, 100), keep_ratio=True)
    ours, stock = (load(str(path), **arguments) for load in (load_ours, load_stock))
    assert_same_geometry(ours, stock)
    assert np.array_equal(ours['img'], stock['img'])


def test_xmp_turns_nothing_as_opencv_does_not_look_at_it(tmp_path):
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"></x>'
    path = write_jpeg(tmp_path / 'x.jpg', smooth_picture(640, 320), xmp=xmp)
    with Image.open(path) as file:
        assert file.getexif().get(0x0112) == 6
    arguments = dict(scale=(100, 100), keep_ratio=True)
    assert_same_geometry(load_ours(path, **arguments), load_stock(path, **arguments))


def test_a_picture_that_shrinks_to_more_than_half_has_the_stock_pixels(tmp_path):
    path = write_jpeg(tmp_path / 'x.jpg', smooth_picture(640, 480))
    arguments = dict(scale=(321, 321), keep_ratio=True)
    assert np.array_equal(load_ours(path, **arguments)['img'], load_stock(path, **arguments)['img'])


def test_random_sizes_come_from_random_choice_resize(tmp_path):
    path = write_jpeg(tmp_path / 'x.jpg', smooth_picture(640, 480))
    choice = dict(type='RandomChoiceResize', scales=[(64, 64), (96, 96)], keep_ratio=True)
    steps = [ANNOTATIONS, dict(choice, resize_type='ddetr_plugin.LoadImageResized')]
    stock = [dict(type='LoadImageFromFile'), ANNOTATIONS, choice]
    seen = set()
    for seed in range(8):
        np.random.seed(seed)
        ours = run(steps, path)
        np.random.seed(seed)
        assert_same_geometry(ours, run(stock, path))
        seen.add(ours['img_shape'])
    assert seen == {(48, 64), (72, 96)}


def test_a_picture_in_memory_that_nothing_loaded_has_its_original_size():
    picture = smooth_picture(640, 480)
    with DefaultScope.overwrite_default_scope('mmdet'):
        pipeline = Compose(
            [
                dict(type='ddetr_plugin.LoadImageResized', scale=(64, 64), keep_ratio=True),
                dict(type='PackDetInputs', meta_keys=('ori_shape', 'img_shape', 'scale_factor')),
            ]
        )
    sample = pipeline(dict(img=picture, img_id=0))['data_samples']
    assert sample.ori_shape == (480, 640)
    assert sample.img_shape == (48, 64)


def test_a_picture_in_memory_is_only_resized():
    picture = smooth_picture(640, 480)
    arguments = dict(scale=(100, 100), keep_ratio=True)
    with DefaultScope.overwrite_default_scope('mmdet'):
        ours, stock = (
            Compose([dict(type=kind, **arguments)])(dict(img=picture.copy(), img_id=0))
            for kind in ('ddetr_plugin.LoadImageResized', 'Resize')
        )
    assert np.array_equal(ours['img'], stock['img'])


@pytest.mark.parametrize('data', [b'', b'no picture', b'\xff\xd8\xffcut off'])
def test_a_file_that_is_no_picture_is_named(tmp_path, data):
    path = tmp_path / 'broken.jpg'
    path.write_bytes(data)
    with pytest.raises(ValueError, match='cannot decode .*broken.jpg'):
        load_ours(str(path), scale=(100, 100))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='missing.jpg'):
        load_ours(str(tmp_path / 'missing.jpg'), scale=(100, 100))


@pytest.mark.skipif(not SAMPLE.is_dir(), reason='the sample of COCO is not there')
def test_real_pictures_alias_less_than_with_the_stock_resize():
    """Measured against the mean of all pixels that a pixel covers."""
    differences = []
    for path in sorted(SAMPLE.glob('*.jpg'))[:20]:
        arguments = dict(scale=(192, 192), keep_ratio=True)
        ours, stock = (load(str(path), **arguments) for load in (load_ours, load_stock))
        assert_same_geometry(ours, stock)
        height, width = ours['img_shape']
        whole = cv2.imread(str(path))
        wanted = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA).astype(float)
        differences.append([np.abs(r['img'] - wanted).mean() for r in (ours, stock)])
    mean_ours, mean_stock = np.mean(differences, axis=0)
    assert mean_ours < 0.6 * mean_stock
