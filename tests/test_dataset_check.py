"""Data that does not fit is found before a training."""

import json
import shutil
from pathlib import Path

import check_dataset
import mmcv
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'data'


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
        return check_dataset.check_folder(folder)[2]

    edit.folder = folder
    return edit


def test_good_data_has_no_findings(data):
    train, val, findings = check_dataset.check_folder(data.folder)
    assert findings == []
    assert train.image_folder == val.image_folder == data.folder / 'images'


@pytest.mark.parametrize(
    ('change', 'level', 'kind'),
    [
        (lambda c: c['images'][0].update(file_name='gone.png'), 'error', 'missing pictures'),
        (lambda c: c['images'][0].update(width=65), 'error', 'pictures of another size'),
        (lambda c: c['images'].append(dict(c['images'][0])), 'error', 'images without an id'),
        (lambda c: c['annotations'][0].update(image_id=99), 'error', 'unknown pictures'),
        (lambda c: c['annotations'][0].update(category_id=99), 'error', 'unknown classes'),
        (lambda c: c['annotations'][0].update(bbox=[1, 1, float('nan'), 2]), 'error', 'finite'),
        (lambda c: c['annotations'][0].update(bbox=[1, 2, 3]), 'error', 'four finite numbers'),
        (lambda c: c['annotations'][0].pop('area'), 'error', 'without area'),
        (lambda c: c['annotations'][0].update(bbox=[1, 1, 0, 5]), 'warning', 'without area'),
        (lambda c: c['annotations'][0].update(bbox=[60, 1, 9, 5]), 'warning', 'leave their'),
        (lambda c: c['annotations'][0].update(area=0), 'warning', 'area is not positive'),
        (lambda c: c['annotations'].clear(), 'error', 'no boxes at all'),
        (lambda c: c['annotations'].clear(), 'warning', 'classes without boxes'),
        (lambda c: c['images'][0].update(file_name='02.png'), 'warning', 'listed more than once'),
        (lambda c: c['images'][0].update(file_name='val_01.png'), 'warning', 'in both train and'),
        (lambda c: c['categories'][0].update(name='bar'), 'error', 'class names not unique'),
        (lambda c: c['categories'].reverse(), 'error', 'classes of the splits differ'),
        (lambda c: c['annotations'][0].update(id=0), 'error', 'not positive integers'),
        (lambda c: c['annotations'][0].update(id='a0'), 'error', 'not positive integers'),
        (lambda c: c['images'][0].update(id='one'), 'error', 'ids of images of several kinds'),
    ],
)
def test_every_fault_is_found_with_its_place_and_remedy(data, change, level, kind):
    findings = [f for f in data(change) if f.level == level and kind in f.kind]
    assert findings
    assert findings[0].where and findings[0].remedy


def test_corners_instead_of_sizes_are_recognised(data):
    def to_corners(content):
        for annotation in content['annotations']:
            x, y, width, height = annotation['bbox']
            annotation['bbox'] = [x, y, x + width, y + height]

    assert any('x1, y1, x2, y2' in f.kind for f in data(to_corners))


def test_a_truncated_picture_is_named(data):
    path = data.folder / 'images' / '01.png'
    path.write_bytes(path.read_bytes()[:500])
    findings = check_dataset.check_folder(data.folder)[2]
    assert any(f.kind == 'broken pictures' and '01.png' in f.where for f in findings)


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
        check_dataset.check_folder(tmp_path)


def test_a_file_of_another_format_is_refused(data):
    (data.folder / 'annotations/instances_train.json').write_text('[1, 2]')
    with pytest.raises(ValueError, match='not in COCO format'):
        check_dataset.check_folder(data.folder)


@pytest.mark.parametrize('name', ['bccd', 'chess', 'coco_sample'])
def test_real_data_sets_pass(name):
    if not (SHARED / name).exists():
        pytest.skip('the data sets are not part of the project')
    assert not [f for f in check_dataset.check_folder(SHARED / name)[2] if f.level == 'error']


def test_pictures_that_training_could_not_load_are_named(data):
    folder = data.folder / 'images'
    Image.fromarray(np.zeros((48, 64), np.float32)).save(folder / '01.tif')
    Image.new('RGB', (3000, 2)).save(folder / '02.png')

    def change(content):
        content['images'][0].update(file_name='01.tif', width=64, height=48)
        content['images'][1].update(width=3000, height=2)

    found = {f.kind: f.where for f in data(change) if f.level == 'error'}
    assert 'OpenCV cannot decode' in found['broken pictures']
    assert '3000 x 2' in found['pictures too thin to be made smaller']
