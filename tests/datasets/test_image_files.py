"""Image files are read in one way: what a check sees is what a training gets."""

import io

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from ddetr_plugin.data_checks import check_pictures
from ddetr_plugin.data_checks.sizes import SizeMismatch, judge_sizes
from ddetr_plugin.datasets import Decoding, LoadImageChecked, UnreadableImageError, read_image
from ddetr_plugin.datasets.image_files import decoding_of

ORIENTATION = 0x0112
FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF')


def write(path, form, orientation=1, size=(40, 24)):
    """A noisy image, stored on its side or not."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = dict(tiffinfo={ORIENTATION: orientation}) if form == 'TIFF' else dict(exif=exif)
    try:
        Image.fromarray(noise).save(path, form, **options)
    except (KeyError, OSError) as error:
        pytest.skip(f'this Pillow writes no {form}: {error}')


def loaded(path, **settings):
    """What a training gets; None where that is an error."""
    try:
        return LoadImageFromFile(**settings).transform(dict(img_path=str(path)))['img']
    except (AssertionError, cv2.error):
        return None


@pytest.mark.parametrize('color_type', ['color', 'unchanged'])
@pytest.mark.parametrize('orientation', [1, 3, 6])
@pytest.mark.parametrize('form', FORMATS)
def test_what_is_read_and_checked_is_what_a_training_gets(tmp_path, form, orientation, color_type):
    path = tmp_path / f'1.{form.lower()}'
    write(path, form, orientation)
    decoding = Decoding(color_type)
    expected = loaded(path, color_type=color_type)
    if expected is None:
        pytest.skip(f'this OpenCV reads no {form}')
    assert np.array_equal(read_image(path, decoding), expected)

    def kinds(width, height):
        image = dict(id=1, file_name=path.name, width=width, height=height)
        found = check_pictures(tmp_path, [image], (), decoding=decoding)
        return [f.kind for f in found if f.level == 'error']

    height, width = expected.shape[:2]
    assert kinds(width, height) == []
    assert len(kinds(height, width)) == 1


def test_a_format_that_pillow_does_not_know_is_right_where_opencv_reads_it(tmp_path):
    path = tmp_path / '1.hdr'
    assert cv2.imwrite(str(path), np.random.default_rng(0).random((24, 40, 3), np.float32))
    # The premise, of Pillow.
    with pytest.raises(OSError, match='cannot identify'):
        Image.open(path)
    image = dict(id=1, file_name=path.name, width=40, height=24)
    assert check_pictures(tmp_path, [image], ()) == []
    assert np.array_equal(read_image(path), loaded(path))


@pytest.mark.parametrize('form', [*FORMATS, 'BMP', 'GIF', 'PPM'])
def test_no_part_of_an_image_passes_for_a_whole_one(tmp_path, form):
    whole = io.BytesIO()
    write(whole, form, size=(90, 64))
    path = tmp_path / f'1.{form.lower()}'
    path.write_bytes(whole.getvalue())
    if loaded(path) is None:
        pytest.skip(f'this OpenCV reads no {form}')
    for rest in (len(whole.getvalue()) // 2, 0):
        path.write_bytes(whole.getvalue()[:rest])
        with pytest.raises(UnreadableImageError, match='.'):
            read_image(path)
        image = dict(id=1, file_name=path.name, width=90, height=64)
        (found,) = check_pictures(tmp_path, [image], ())
        assert found.kind == 'broken pictures' and found.detail
        with pytest.raises(ValueError, match='broken picture'):
            LoadImageChecked(LoadImageFromFile()).transform(dict(img_path=str(path)))


def test_the_loader_of_a_pipeline_says_how_to_decode():
    load = dict(type='LoadImageFromFile', color_type='unchanged', imdecode_backend='tifffile')
    expected = Decoding('unchanged', 'tifffile')
    assert decoding_of([load]) == expected
    checked = dict(type='ddetr_plugin.LoadImageChecked', load=load, max_broken=3)
    assert decoding_of([dict(type='X'), checked]) == expected
    assert decoding_of([dict(type='LoadImageFromFile')]) == Decoding() == decoding_of(None)


BOTH, UPRIGHT, STORED = [1, 1, 20, 20], [1, 30, 20, 9], [30, 1, 9, 20]


@pytest.mark.parametrize(
    ('boxes', 'orientation', 'kind', 'remedy'),
    [
        ([UPRIGHT], 6, 'images whose width and height are exchanged', 'leave the file and boxes'),
        ([UPRIGHT], 1, 'images whose width and height are exchanged', 'leave the file and boxes'),
        ([STORED], 6, 'pictures that are turned when loaded', 'save it without the EXIF'),
        ([STORED], 1, 'pictures of another size than stated', 'turn its boxes'),
        ([BOTH], 6, 'pictures that are turned when loaded', 'look at one'),
        ([], 6, 'pictures that are turned when loaded', 'look at one'),
        ([BOTH, UPRIGHT], 6, 'images whose width and height are exchanged', 'leave the file'),
    ],
)
def test_boxes_say_which_of_two_exchanged_sizes_is_right(
    tmp_path, boxes, orientation, kind, remedy
):
    write(tmp_path / '1.jpg', 'JPEG', orientation, (24, 40) if orientation == 1 else (40, 24))
    assert read_image(tmp_path / '1.jpg').shape == (40, 24, 3)
    image = dict(id=1, file_name='1.jpg', width=40, height=24)
    annotations = [dict(image_id=1, bbox=box) for box in boxes]
    (found,) = check_pictures(tmp_path, [image], (), annotations)
    assert (found.level, found.kind) == ('error', kind)
    assert remedy in found.remedy
    # Advice that would spoil boxes that are right.
    assert not (boxes == [UPRIGHT] and 'save it' in found.remedy)


def test_images_whose_boxes_fit_both_sizes_follow_the_others(tmp_path):
    mismatches = [
        SizeMismatch(tmp_path, dict(id=i, width=40, height=24), (24, 40), 6) for i in range(3)
    ]

    def kinds(*boxes):
        annotations = [dict(image_id=i, bbox=box) for i, box in enumerate(boxes)]
        return {f.kind for f in judge_sizes(mismatches, annotations)}

    exchanged, turned = (
        'images whose width and height are exchanged',
        'pictures that are turned when loaded',
    )
    assert kinds(BOTH, UPRIGHT, BOTH) == {exchanged}
    assert kinds(BOTH, STORED, BOTH) == {turned}
    assert kinds(BOTH, STORED, UPRIGHT) == {exchanged, turned}


@pytest.mark.parametrize(
    ('box', 'remedy'),
    [([30, 20, 15, 9], 'correct width and height in the annotations'), ([1, 1, 5, 5], 'and the')],
)
def test_boxes_say_whether_another_size_is_a_slip_or_a_resize(tmp_path, box, remedy):
    write(tmp_path / '1.png', 'PNG', size=(80, 48))
    image = dict(id=1, file_name='1.png', width=40, height=24)
    (found,) = check_pictures(tmp_path, [image], (), [dict(image_id=1, bbox=box)])
    assert found.kind == 'pictures of another size than stated' and remedy in found.remedy
    image = dict(id=1, file_name='1.png', width=160, height=96)
    (found,) = check_pictures(tmp_path, [image], (), [dict(image_id=1, bbox=[90, 60, 50, 30])])
    assert 'was the image resized?' in found.remedy
