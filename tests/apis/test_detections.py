"""What a result is turned into: COCO's form, supervision's, and drawings."""

import sys
import types

import cv2
import numpy as np
import pytest
from blob_detector import scene
from pycocotools import mask as mask_utils

from ddetr_plugin.apis import Detections

BOXES = np.array([[-5, -5, 10, 10], [20, 10, 30, 40], [70, 5, 90, 9]], np.float32)


def record(**changes):
    values = dict(
        boxes=BOXES,
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        labels=np.array([1, 0, 1]),
        classes=('green', 'red'),
        size=(30, 60),
        queries=np.array([4, 5, 6]),
    )
    return Detections(**{**values, **changes})


def test_coco_rows_end_at_the_border_and_leave_out_what_is_outside():
    rows = record().to_coco(7, [30, 50])
    assert [row['bbox'] for row in rows] == [[0, 0, 10, 10], [20, 10, 10, 20]]
    assert [row['category_id'] for row in rows] == [50, 30]
    assert [row['area'] for row in rows] == [100, 200]
    assert rows[0]['score'] == pytest.approx(0.9) and rows[0]['image_id'] == 7
    assert all(type(value) is float for row in rows for value in (*row['bbox'], row['area']))
    assert [row['category_id'] for row in record().to_coco()] == [2, 1]


def test_masks_become_rle_and_areas():
    masks = np.zeros((3, 30, 60), bool)
    masks[1, 10:20, 20:27] = True
    rows = record(masks=masks).to_coco()
    assert rows[1]['area'] == 70
    encoded = dict(rows[1]['segmentation'], counts=rows[1]['segmentation']['counts'].encode())
    assert np.array_equal(mask_utils.decode(encoded).astype(bool), masks[1])


def test_some_of_the_detections_are_chosen_like_those_of_an_array():
    found = record()
    assert found[found.scores > 0.75].names == ['red', 'green']
    assert found[1].names == ['green'] and found[1].queries.tolist() == [5]
    assert len(found[:0]) == 0 and len(found) == 3
    assert np.array_equal(found.boxes, BOXES), 'the record itself stays as it is'


def test_supervision_is_handed_arrays_and_names(monkeypatch):
    class Received:
        def __init__(self, **fields):
            vars(self).update(fields)

    monkeypatch.setitem(sys.modules, 'supervision', types.SimpleNamespace(Detections=Received))
    found = record().to_supervision()
    assert np.array_equal(found.xyxy, BOXES) and found.class_id.tolist() == [1, 0, 1]
    assert found.data['class_name'].tolist() == ['red', 'green', 'red']
    assert found.data['query'].tolist() == [4, 5, 6] and found.mask is None


def test_supervision_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(ImportError, match='pip install supervision'):
        record().to_supervision()


def test_supervision_takes_them_where_it_is_installed():
    supervision = pytest.importorskip('supervision')
    found = record().to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 3
    assert found[found.confidence > 0.75].class_id.tolist() == [1, 0]


def test_drawings_are_of_the_image_that_is_given_kept_or_read_again(blob_detector, tmp_path):
    image = scene(60, 60, (10, 20, 30, 20, 1))
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    (kept,) = blob_detector()(image, keep_images=True)
    (read,) = blob_detector()(tmp_path / 'image.png')
    (lost,) = blob_detector()(image)
    drawn = kept.draw()
    assert drawn.shape == image.shape and not np.array_equal(drawn, image)
    assert np.array_equal(drawn, read.draw()) and np.array_equal(drawn, lost.draw(image))
    assert np.array_equal(image, scene(60, 60, (10, 20, 30, 20, 1))), 'it is not drawn over'
    assert kept.draw(scale=2).shape == (120, 120, 3)
    with pytest.raises(ValueError, match='image 0 was not kept'):
        lost.draw()
    for wrong in (image[:50], image.astype(float)):
        with pytest.raises(ValueError, match=r'is drawn on an array \(60, 60, 3\)'):
            lost.draw(wrong)


def test_masks_and_queries_are_there_where_the_model_has_them(blob_detector, tiny_detector):
    image = scene(60, 90, (10, 20, 30, 25, 1))
    (found,) = blob_detector(with_masks=True)(image)
    assert found.masks.shape == (1, 60, 90) and found.masks.dtype == bool
    assert found.masks[0, 20:45, 10:40].mean() > 0.9 and found.masks.sum() < 900
    (found,) = tiny_detector(image, score_thr=0)
    assert found.masks is None and set(found.queries) <= set(range(12))
    (best,) = tiny_detector(image, score_thr=0, one_class_per_box=True)
    assert len(best) == len(set(found.queries)) == 12
