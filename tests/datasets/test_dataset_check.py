"""Data that does not fit is found before a training."""

import json
import shutil
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ddetr_plugin.config_files import find_config
from ddetr_plugin.data_checks import Split, check_split, check_splits, read_annotations
from ddetr_plugin.intake.checks import SCALES, check_folder

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / 'shared' / 'data'


def check_as_it_is(folder):
    """The findings of a data set that nothing was repaired in."""
    train, val = (
        Split(name, file, folder / 'images', read_annotations(file))
        for name in ('train', 'val')
        for file in [folder / f'annotations/instances_{name}.json']
    )
    findings = check_split(train, SCALES, scored=False)
    return findings + check_split(val, SCALES) + check_splits(train, val)


@pytest.fixture
def data(tiny_coco, tmp_path):
    """A folder with both splits; the function it comes with rewrites an annotation file."""
    folder = tmp_path / 'data'
    (folder / 'annotations').mkdir(parents=True)
    shutil.copytree(tiny_coco.images, folder / 'images')
    content = json.loads(tiny_coco.annotations.read_text())
    (folder / 'annotations/instances_train.json').write_text(json.dumps(content))
    # Other files: pictures in both splits are a finding.
    for image in content['images']:
        name = f'val_{image["file_name"]}'
        shutil.copy(folder / 'images' / image['file_name'], folder / 'images' / name)
        image['file_name'] = name
    (folder / 'annotations/instances_val.json').write_text(json.dumps(content))

    def edit(change, split='train'):
        path = folder / f'annotations/instances_{split}.json'
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return check_as_it_is(folder)

    edit.folder = folder
    return edit


def test_good_data_has_no_findings(data):
    train, val, findings = check_folder(data.folder)
    assert findings == []
    assert train.image_folder == val.image_folder == data.folder / 'images'


@pytest.mark.parametrize(
    ('change', 'level', 'kind'),
    [
        (lambda c: c['images'][0].update(file_name='gone.png'), 'error', 'missing pictures'),
        (lambda c: c['images'][0].update(width=65), 'error', 'pictures of another size'),
        (lambda c: c['images'].append(dict(c['images'][0])), 'error', 'images without an id'),
        (lambda c: c['annotations'][0].update(id=0), 'warning', 'not positive integers'),
        (lambda c: c['annotations'][0].update(id=-1), 'warning', 'not positive integers'),
        (lambda c: c['annotations'][0].update(id=True), 'warning', 'not positive integers'),
        (
            lambda c: [a.update(id=f'a{a["id"]}') for a in c['annotations']],
            'warning',
            'not positive',
        ),
        (lambda c: c['images'][0].update(id='first'), 'error', 'images with ids of two kinds'),
        (lambda c: c['categories'][0].update(id='first'), 'error', 'categories with ids of two'),
        (lambda c: c['annotations'][0].update(image_id=99), 'error', 'unknown pictures'),
        (lambda c: c['annotations'][0].update(category_id=99), 'error', 'unknown classes'),
        (lambda c: c['annotations'][0].update(bbox=[1, 1, float('nan'), 2]), 'error', 'finite'),
        (lambda c: c['annotations'][0].update(bbox=[1, 2, 3]), 'error', 'four finite numbers'),
        (lambda c: c['annotations'][0].pop('area'), 'error', 'without area'),
        (lambda c: c['annotations'][0].update(bbox=[1, 1, 0, 5]), 'warning', 'without area'),
        (lambda c: c['annotations'][0].update(bbox=[60, 1, 9, 5]), 'warning', 'leave their'),
        (lambda c: c['annotations'][0].update(area=0), 'warning', 'area is not positive'),
        (lambda c: c['annotations'].clear(), 'error', 'no boxes at all'),
        (lambda c: [a.update(iscrowd=1) for a in c['annotations']], 'error', 'no boxes but'),
        (lambda c: [a.update(bbox=[1, 1, 0, 5]) for a in c['annotations']], 'error', 'no boxes at'),
        (lambda c: c['annotations'].clear(), 'warning', 'classes without boxes'),
        (lambda c: c['images'][0].update(file_name='02.png'), 'warning', 'listed more than once'),
        (lambda c: c['images'][0].update(file_name='val_01.png'), 'warning', 'in both train and'),
        (lambda c: c['categories'][0].update(name='bar'), 'error', 'class names not unique'),
        (lambda c: c['categories'].reverse(), 'error', 'classes of the splits differ'),
    ],
)
def test_every_fault_is_found_with_its_place_and_remedy(data, change, level, kind):
    findings = [f for f in data(change) if f.level == level and kind in f.kind]
    assert findings
    assert findings[0].where and findings[0].remedy


def test_an_annotation_id_of_zero_would_falsify_the_map():
    """The premise of refusing it: pycocotools counts a perfect detection as missed."""

    def precision(first_id):
        truth = COCO()
        box = dict(id=first_id, image_id=1, category_id=1, bbox=[1, 2, 8, 9], area=72, iscrowd=0)
        truth.dataset = dict(images=[dict(id=1)], annotations=[box], categories=[dict(id=1)])
        truth.createIndex()
        found = truth.loadRes([dict(image_id=1, category_id=1, bbox=[1, 2, 8, 9], score=1.0)])
        evaluation = COCOeval(truth, found, 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats[0]

    assert precision(1) == pytest.approx(1)
    assert precision(0) == 0


def test_corners_instead_of_sizes_are_recognised(data):
    def to_corners(content):
        for annotation in content['annotations']:
            x, y, width, height = annotation['bbox']
            annotation['bbox'] = [x, y, x + width, y + height]

    assert any('x1, y1, x2, y2' in f.kind for f in data(to_corners))


def test_a_truncated_picture_is_named(data):
    path = data.folder / 'images' / '01.png'
    path.write_bytes(path.read_bytes()[:500])
    findings = check_folder(data.folder)[2]
    assert any(f.kind == 'broken pictures' and '01.png' in f.where for f in findings)


def test_whatever_a_decoder_raises_is_a_finding(data, monkeypatch):
    """Pillow raises RuntimeError for a broken AVIF, whose name may end with .jpg."""

    def fail(file):
        raise RuntimeError('Failed to decode frame 0')

    monkeypatch.setattr('PIL.PngImagePlugin.PngImageFile.load', fail)
    findings = check_folder(data.folder)[2]
    assert any(
        f.kind == 'broken pictures' and f.detail == 'Failed to decode frame 0' for f in findings
    )


def test_a_picture_that_only_pillow_reads_is_an_error(data):
    path = data.folder / 'images' / 'float.tiff'
    Image.new('F', (64, 48)).save(path)
    # The premise, in the loader that trainings use.
    assert mmcv.imread(str(path)) is None
    findings = data(lambda c: c['images'][0].update(file_name='float.tiff'))
    found = [f for f in findings if f.level == 'error']
    assert [f.kind for f in found] == ['pictures that OpenCV cannot read']
    assert 'float.tiff: TIFF, mode F' in found[0].where


@pytest.mark.parametrize('size', [(3000, 2), (2, 3000), (640, 1), (639, 1), (3000, 5)])
def test_a_picture_is_too_thin_where_resizing_leaves_nothing_of_it(data, size):
    width, height = size
    Image.new('RGB', size).save(data.folder / 'images' / 'thin.png')
    # The premise, in the function that trainings use.
    try:
        mmcv.imrescale(np.zeros((height, width, 3), np.uint8), (320, 320))
        fails = False
    except cv2.error:
        fails = True
    new = dict(file_name='thin.png', width=width, height=height)
    findings = data(lambda c: c['images'][0].update(new))
    assert [f.kind for f in findings if f.level == 'error'] == [
        'pictures that are too thin'
    ] * fails
    assert fails == (size in [(3000, 2), (2, 3000)])


def test_the_smallest_scale_is_that_of_the_custom_config():
    file = find_config('own_images')
    pipeline = Config.fromfile(file).train_dataloader.dataset.pipeline
    scales = next(step.scales for step in pipeline if 'scales' in step)
    assert (tuple(min(scales)),) == SCALES


def test_every_picture_is_decoded_however_many_there_are(data):
    """A header is no picture."""
    name = 'truncated.png'
    content = (data.folder / 'images' / '02.png').read_bytes()[:500]

    def append(annotations):
        for number in range(1001, 2101):
            file_name = f'{number}.png'
            shutil.copy(data.folder / 'images' / '01.png', data.folder / 'images' / file_name)
            annotations['images'].append(dict(id=number, file_name=file_name, width=64, height=48))
        (data.folder / 'images' / name).write_bytes(content)
        annotations['images'].append(dict(id=3000, file_name=name, width=64, height=48))

    found = [f.kind for f in data(append) if name in f.where and f.level == 'error']
    assert found == ['broken pictures']


def turned_picture(folder):
    """Writes a picture stored as 64 x 48, which its EXIF orientation turns to 48 x 64."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / 'images' / 'turned.jpg'
    Image.new('RGB', (64, 48)).save(path, exif=exif)
    return path


def test_a_picture_that_loading_turns_is_an_error_unless_annotated_so(data):
    path = turned_picture(data.folder)
    # The premise, in the loader that trainings use.
    assert mmcv.imread(str(path)).shape == (64, 48, 3)
    findings = data(lambda c: c['images'][0].update(file_name='turned.jpg'))
    found = [f for f in findings if f.level == 'error']
    assert [f.kind for f in found] == ['pictures that are turned when loaded']
    assert 'EXIF orientation 6' in found[0].where
    assert not [
        f for f in data(lambda c: c['images'][0].update(width=48, height=64)) if f.level == 'error'
    ]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.update(images={}), 'images is a dict, not a list'),
        (lambda c: c['images'].append('x'), "entry 8 of images .*found 'x'"),
        (lambda c: c['images'][0].update(id=[1]), 'entry 0 of images has no usable id'),
        (lambda c: c['images'][0].update(width='64'), "no usable width .found '64'"),
        (lambda c: c['annotations'][0].pop('image_id'), 'no usable image_id'),
        (lambda c: c['categories'][0].pop('name'), 'no usable name'),
    ],
)
def test_an_entry_of_another_form_is_refused_by_its_number(data, change, message):
    with pytest.raises(ValueError, match=f'not in COCO format: .*{message}'):
        data(change)


def test_a_folder_without_training_annotations_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match='instances_train.json'):
        check_folder(tmp_path)


def test_a_file_of_another_format_is_refused(data):
    (data.folder / 'annotations/instances_train.json').write_text('[1, 2]')
    with pytest.raises(ValueError, match='not in COCO format'):
        check_folder(data.folder)


@pytest.mark.parametrize('name', ['bccd', 'chess', 'coco_sample'])
def test_real_data_sets_pass(name):
    if not (SHARED / name).exists():
        pytest.skip('the data sets are not part of the project')
    assert not [f for f in check_folder(SHARED / name)[2] if f.level == 'error']
