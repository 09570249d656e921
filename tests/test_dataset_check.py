"""Data that does not fit is found before a training."""

import json
import shutil
from pathlib import Path

import check_dataset
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'data'


@pytest.fixture
def data(tiny_coco, tmp_path):
    """A folder with both splits; the function it comes with rewrites an annotation file."""
    folder = tmp_path / 'data'
    (folder / 'annotations').mkdir(parents=True)
    shutil.copytree(tiny_coco.images, folder / 'images')
    for split in ('train', 'val'):
        shutil.copy(tiny_coco.annotations, folder / f'annotations/instances_{split}.json')

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
        (lambda c: c['annotations'].clear(), 'error', 'no boxes at all'),
        (lambda c: c['categories'][0].update(name='bar'), 'error', 'class names not unique'),
        (lambda c: c['categories'].reverse(), 'error', 'classes of the splits differ'),
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
