"""Detector on every kind of input: order, laziness, and images that cannot be predicted."""

import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from blob_detector import scene
from PIL import Image

from ddetr_plugin.apis import Detections
from ddetr_plugin.models.losses.assigner import NotFiniteError


def same(a, b):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ('boxes', 'scores', 'labels', 'queries')
    )


@pytest.fixture(scope='module')
def expected(tiny_detector, tiny_coco):
    """The detections on the first two images."""
    paths = sorted(tiny_coco.images.iterdir())[:2]
    return list(tiny_detector(paths, score_thr=0))


KINDS = {
    'a path': lambda path: str(path),
    'a Path': lambda path: path,
    'a list of paths': lambda path: [path],
    'a glob': lambda path: path.with_name('01.*'),
    'an array': lambda path: cv2.imread(str(path)),
    'a PIL image': lambda path: Image.open(path),
    'a PIL image with alpha': lambda path: Image.open(path).convert('RGBA'),
    'a list of arrays': lambda path: [cv2.imread(str(path))],
    'a generator': lambda path: (cv2.imread(str(path)) for _ in range(1)),
}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_image_gives_the_same_detections(tiny_detector, tiny_coco, expected, kind):
    (found,) = tiny_detector(KINDS[kind](tiny_coco.images / '01.png'), score_thr=0)
    assert same(found, expected[0])
    assert isinstance(found, Detections) and len(found) == 36
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.boxes.shape == (36, 4)
    assert found.size == (48, 64) and found.error is None
    assert set(found.names) == set(tiny_coco.classes)
    from_file = isinstance(KINDS[kind](tiny_coco.images / '01.png'), (str, Path)) or 'path' in kind
    assert found.source == (str(tiny_coco.images / '01.png') if from_file else None)


def test_a_folder_is_predicted_in_the_order_of_names(tiny_detector, tiny_coco, expected):
    found = list(tiny_detector(tiny_coco.images, score_thr=0))
    assert [Path(f.source).name for f in found] == [f'{i:02d}.png' for i in range(1, 9)]
    assert [f.index for f in found] == list(range(8))
    assert same(found[1], expected[1])


def test_inputs_may_be_mixed(tiny_detector, tiny_coco, expected):
    path = tiny_coco.images / '01.png'
    mixed = [path, tiny_coco.images, cv2.imread(str(path)), Image.open(path)]
    found = list(tiny_detector(mixed, score_thr=0))
    assert len(found) == 11
    assert all(same(found[i], expected[0]) for i in (0, 1, 9, 10))


@pytest.mark.parametrize(('batch_size', 'num_workers'), [(1, 0), (3, 0), (1, 2), (3, 2), (20, 5)])
def test_batches_and_threads_keep_the_order(blob_detector, batch_size, num_workers):
    detector = blob_detector()
    # Each has one blob, of another place and in an image of another size.
    images = [scene(100 + 7 * i, 120, (10 + 3 * i, 20, 30, 40, i % 2)) for i in range(10)]
    found = list(detector(iter(images), batch_size=batch_size, num_workers=num_workers))
    assert [f.index for f in found] == list(range(10))
    for i, one in enumerate(found):
        assert one.size == (100 + 7 * i, 120) and one.names == [('green', 'red')[i % 2]]
        assert one.boxes[0] == pytest.approx([10 + 3 * i, 20, 40 + 3 * i, 60], abs=1)
    whole, rest = divmod(10, batch_size)
    assert detector.model.batches == [batch_size] * whole + [rest] * (rest > 0)


@pytest.mark.parametrize('tiles', [None, 64])
@pytest.mark.parametrize(('batch_size', 'num_workers'), [(1, 0), (2, 0), (1, 3), (2, 3)])
def test_frames_of_a_generator_are_taken_as_it_goes_and_let_go(
    blob_detector, batch_size, num_workers, tiles
):
    references, most, taken = [], 0, 0

    class Frame(np.ndarray):
        """An array that can be referred to weakly."""

    def frames():
        nonlocal most, taken
        for _ in range(30):
            frame = scene(80, 80, (10, 10, 30, 30, 0)).view(Frame)
            references.append(weakref.ref(frame))
            taken += 1
            most = max(most, sum(reference() is not None for reference in references))
            yield frame
            del frame

    options = dict(batch_size=batch_size, num_workers=num_workers, tiles=tiles)
    results = blob_detector()(frames(), **options)
    assert taken == 0
    for number, found in enumerate(results, start=1):
        assert len(found) == 1
        assert taken <= number + batch_size + num_workers
    assert number == taken == 30
    # One more: the one that the generator is making.
    assert most <= batch_size + num_workers + 2


def test_a_detector_that_is_left_early_ends_its_threads(blob_detector):
    import threading

    before = threading.active_count()
    results = blob_detector()((scene(40, 40) for _ in range(100)), num_workers=3)
    next(results)
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize('tiles', [None, 32])
@pytest.mark.parametrize(('batch_size', 'num_workers'), [(1, 0), (3, 2)])
def test_a_bad_image_ends_nothing(blob_detector, tmp_path, batch_size, num_workers, tiles):
    good = scene(60, 60, (10, 10, 30, 30, 0))
    cv2.imwrite(str(tmp_path / 'good.png'), good)
    whole = (tmp_path / 'good.png').read_bytes()
    (tmp_path / 'half.png').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'text.jpg').write_text('text')
    thin = np.zeros((3000, 1, 3), np.uint8)
    names = ('good.png', 'half.png', 'text.jpg', 'gone.png', 'good.png')
    images = [*(tmp_path / name for name in names), thin, good]
    options = dict(batch_size=batch_size, num_workers=num_workers, tiles=tiles)
    found = list(blob_detector()(images, **options))
    assert [f.index for f in found] == list(range(7))
    assert [len(f) for f in found] == [1, 0, 0, 0, 1, 0, 1]
    assert [f.error is None for f in found] == [True, False, False, False, True, False, True]
    assert found[1].error.startswith('not a readable image (it is truncated')
    assert 'No such file' in found[3].error and found[3].size == (0, 0)
    assert 'no width or height is left' in found[5].error
    assert found[5].title == 'image 5' and found[1].title == str(tmp_path / 'half.png')


def test_of_a_batch_that_is_too_large_only_the_image_at_fault_is_lost(blob_detector, monkeypatch):
    detector = blob_detector()
    predict = detector.model.predict

    def limited(batch_inputs, samples, rescale=True):
        if batch_inputs.shape[-1] > 100:
            raise torch.OutOfMemoryError('tried to allocate 1 TiB')
        return predict(batch_inputs, samples, rescale)

    monkeypatch.setattr(detector.model, 'predict', limited)
    images = [scene(60, 60, (10, 10, 30, 30, 0)), scene(40, 60), scene(60, 60)]
    wide = detector(images, batch_size=3)
    assert [f.error for f in wide] == ['cannot be predicted (tried to allocate 1 TiB)'] * 3
    detector._pipeline.steps[1].scale = (80, 80)
    assert [len(f) for f in detector(images, batch_size=3)] == [1, 0, 0]


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros((4, 4), np.uint8), r'an array \(H, W, 3\) of uint8.*got \(4, 4\) of uint8'),
        (np.zeros((4, 4, 3), np.float32), 'of float32'),
        (np.zeros((4, 4, 4), np.uint8), r'got \(4, 4, 4\)'),
        (np.zeros((0, 4, 3), np.uint8), r'got \(0, 4, 3\)'),
        ([b'bytes'], 'an image is a path, .* not bytes'),
        (7, 'not int'),
        (torch.zeros(3, 4, 4), 'not Tensor'),
        (Image.new('F', (4, 4)), 'mode F has no known range'),
    ],
    ids=['grey', 'float', 'alpha', 'empty', 'bytes', 'int', 'tensor', 'PIL'],
)
def test_what_is_no_image_is_an_error_of_the_program(blob_detector, images, message):
    with pytest.raises(TypeError, match=message):
        list(blob_detector()(images))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(batch_size=0), 'batch_size must be 1 or more'),
        (dict(num_workers=-1), 'num_workers 0 or more'),
        (dict(nms=1.5), 'must be 0..1'),
        (dict(tiles=0), 'a side of 1 pixel or more'),
        (dict(tiles=9, overlap=1.0), 'an overlap of 0 to below 1'),
    ],
)
def test_an_option_out_of_range_is_refused_at_once(blob_detector, options, message):
    with pytest.raises(ValueError, match=message):
        blob_detector()([], **options)


def test_a_path_that_does_not_exist_is_refused_at_once(blob_detector, tmp_path):
    with pytest.raises(FileNotFoundError, match='is no file, no folder'):
        blob_detector()(tmp_path / 'gone')


def test_a_model_whose_numbers_are_nan_ends_the_iteration(tiny_detector, tiny_coco, monkeypatch):
    predict = tiny_detector.model.bbox_head.predict

    def broken(*arguments):
        results = predict(*arguments)
        results[-1].bboxes[3] = float('nan')
        return results

    monkeypatch.setattr(tiny_detector.model.bbox_head, 'predict', broken)
    images = sorted(tiny_coco.images.iterdir())[:2]
    with pytest.raises(NotFiniteError, match=r'the box of query \d+ on image .*02\.png'):
        list(tiny_detector(images, batch_size=2))


def test_one_takes_one_image(blob_detector, tmp_path):
    detector = blob_detector()
    image = scene(60, 60, (10, 10, 30, 30, 1))
    assert detector.one(image).names == ['red']
    assert len(detector.one(image, score_thr=0.99)) == 0
    (tmp_path / 'text.png').write_text('text')
    with pytest.raises(ValueError, match=r'text\.png: not a readable image'):
        detector.one(tmp_path / 'text.png')
    for images in ([], [image, image]):
        with pytest.raises(ValueError, match='takes one image'):
            detector.one(images)


def test_pil_images_are_turned_and_narrowed_as_files_are(blob_detector, tmp_path):
    detector = blob_detector()
    bright = scene(60, 90, (10, 20, 30, 40, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # by a quarter
    path = tmp_path / 'turned.png'
    Image.fromarray(bright[..., ::-1]).save(path, exif=exif)
    from_file, from_pil = detector([path, Image.open(path)], keep_images=True)
    assert from_pil.size == from_file.size == (90, 60)
    assert np.array_equal(from_file.image, from_pil.image) and same(from_file, from_pil)
    wide = np.add.outer(np.arange(60), np.arange(90)).astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / 'wide.png'), wide)
    file = Image.open(tmp_path / 'wide.png')
    from_file, from_pil = detector([tmp_path / 'wide.png', file], keep_images=True)
    assert np.array_equal(from_file.image, from_pil.image) and from_file.image.max() == 148
