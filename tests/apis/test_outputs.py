"""Files of detections are read back by those who read such files."""

import csv

import cv2
import numpy as np
import pytest
from blob_detector import blob_checkpoint, blob_config, scene
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ddetr_plugin.apis.outputs import FORMATS, open_outputs
from ddetr_plugin.apis.predicting import predict

BLOBS = {
    'a.png': [(10, 20, 30, 40, 0), (60, 10, 20, 20, 1)],
    'a.jpg': [],
    'below/b.png': [(0, 0, 50, 40, 1)],
}


@pytest.fixture
def predicted(tmp_path):
    """The folder of results of all formats, of a model with masks."""
    for name, blobs in BLOBS.items():
        path = tmp_path / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), scene(80, 100, *blobs))
    checkpoint = blob_checkpoint(tmp_path / 'weights.pth')
    lines = []
    done = predict(
        tmp_path / 'images',
        blob_config(scale=(100, 100), with_masks=True),
        checkpoint,
        tmp_path / 'out',
        recursive=True,
        formats=('coco', 'yolo', 'csv'),
        log=lines.append,
    )
    assert done == (3, 3, 0) and len(lines) == 3
    return tmp_path / 'out'


def test_pycocotools_reads_the_json_as_ground_truth_and_as_results(predicted):
    truth = COCO(str(predicted / 'predictions.json'))
    assert [c['name'] for c in truth.dataset['categories']] == ['green', 'red']
    results = [
        {k: row[k] for k in ('image_id', 'category_id', 'score', 'segmentation', 'bbox')}
        for row in truth.dataset['annotations']
    ]
    for kind in ('bbox', 'segm'):
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == 1
    by_name = {image['file_name']: image['id'] for image in truth.dataset['images']}
    assert set(by_name) == set(BLOBS)
    (row,) = truth.imgToAnns[by_name['below/b.png']]
    assert row['bbox'] == [0, 0, 50, 40] and row['area'] == 2000
    rle = dict(row['segmentation'], counts=row['segmentation']['counts'].encode())
    assert mask_utils.decode(rle)[:40, :50].all() and mask_utils.area(rle) == 2000


def test_yolo_files_hold_shares_of_the_image(predicted):
    folder = predicted / 'labels'
    assert (folder / 'classes.txt').read_text().split() == ['green', 'red']
    rows = [line.split() for line in (folder / 'a.png.txt').read_text().splitlines()]
    assert {row[0] for row in rows} == {'0', '1'}
    (green,) = ([*map(float, row[1:5])] for row in rows if row[0] == '0')
    assert green == pytest.approx([25 / 100, 40 / 80, 30 / 100, 40 / 80], abs=1e-6)
    # Sorted by names, a.jpg came first.
    assert (folder / 'a.txt').read_text() == ''
    assert len((folder / 'below/b.txt').read_text().splitlines()) == 1


def test_the_table_has_a_line_for_each_detection(predicted):
    with open(predicted / 'predictions.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert sorted((row['image'], row['class']) for row in rows) == [
        ('a.png', 'green'),
        ('a.png', 'red'),
        ('below/b.png', 'red'),
    ]
    row = rows[-1]
    assert [float(row[name]) for name in ('x1', 'y1', 'x2', 'y2')] == [0, 0, 50, 40]
    assert row['frame'] == '' and 0.5 <= float(row['score']) <= 1


def test_names_and_scores_that_need_quotes_survive(tmp_path, blob_detector):
    (found,) = blob_detector()(scene(60, 60, (10, 10, 30, 30, 0)))
    (output,) = open_outputs(['csv'], tmp_path, found.classes, [1, 2])
    output.add('a "b", c.png', found)
    output.close()
    rows = list(csv.reader((tmp_path / 'predictions.csv').read_text().splitlines()))
    assert rows[1][0] == 'a "b", c.png' and len(rows) == 2


def test_a_format_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ValueError, match='coco, yolo, csv, not voc'):
        open_outputs(['coco', 'voc'], tmp_path, (), ())
    assert list(FORMATS) == ['coco', 'yolo', 'csv']


def test_no_file_is_left_of_a_model_whose_numbers_are_nan(tmp_path, blob_detector, monkeypatch):
    from blob_detector import BlobDetector

    find = BlobDetector.find

    def broken(self, image, sample):
        found = find(self, image, sample)
        found.bboxes[:] = np.nan
        return found

    monkeypatch.setattr(BlobDetector, 'find', broken)
    cv2.imwrite(str(tmp_path / 'a.png'), scene(60, 60, (10, 10, 30, 30, 0)))
    checkpoint = blob_checkpoint(tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r'query 0 on image .*a\.png'):
        predict(tmp_path / 'a.png', blob_config(), checkpoint, tmp_path / 'out', log=print)
    assert not (tmp_path / 'out' / 'predictions.json').exists()
