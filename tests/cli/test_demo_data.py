"""The demo's scenes."""

import json

import cv2
import numpy as np
import pytest

from ddetr_plugin.apis import demo_data
from ddetr_plugin.apis.demo_data import MAX_DIGITS, make_demo_data, place_digit
from ddetr_plugin.cli import run_command


def read(folder, split):
    return json.loads((folder / f'annotations/instances_{split}.json').read_text())


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'demo'
    assert make_demo_data(folder, train=60, val=20)
    return folder


def test_the_same_arguments_give_the_same_bytes(scenes, tmp_path):
    make_demo_data(tmp_path / 'again', train=60, val=20)
    files = sorted(p.relative_to(scenes) for p in scenes.rglob('*') if p.is_file())
    assert len(files) == 60 + 20 + 3
    for file in files:
        assert (scenes / file).read_bytes() == (tmp_path / 'again' / file).read_bytes(), file


def test_another_seed_gives_other_scenes(scenes, tmp_path):
    make_demo_data(tmp_path / 'other', train=2, val=1, seed=1)
    name = 'images/train_00000.jpg'
    assert (scenes / name).read_bytes() != (tmp_path / 'other' / name).read_bytes()


def test_existing_scenes_are_kept_and_made_anew_from_another_recipe(scenes, tmp_path):
    assert not make_demo_data(scenes, train=60, val=20)
    assert make_demo_data(tmp_path / 'demo', train=2, val=1)
    assert make_demo_data(tmp_path / 'demo', train=1, val=1)
    assert len(read(tmp_path / 'demo', 'train')['images']) == 1


@pytest.mark.parametrize(
    'stamp',
    [
        None,
        '{"dish": "soup"}',
        '{"version": 2, "train": 1, "val": 1, "seed": 0, "dish": "soup"}',
        '{"version": "two", "train": [], "val": {}, "seed": null}',
        '["version", "train", "val", "seed"]',
        'two onions',
        '',
    ],
)
@pytest.mark.parametrize('name', ['demo', 'demo.part'])
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, name, stamp):
    folder = tmp_path / name
    folder.mkdir()
    (folder / 'precious.jpg').write_bytes(b'picture')
    if stamp is not None:
        (folder / 'recipe.json').write_text(stamp)
    with pytest.raises(FileExistsError, match=f'{name} exists and was not made by'):
        make_demo_data(tmp_path / 'demo', train=1, val=1)
    assert (folder / 'precious.jpg').read_bytes() == b'picture'
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_tool_says_what_to_do_about_a_foreign_folder(tmp_path):
    with pytest.raises(SystemExit, match='error: .*remove it, or name another folder with --out'):
        run_command('demo_data', ['--out', str(tmp_path)])


def test_an_interrupted_run_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demo_data, 'write_split', interrupt)
        make_demo_data(tmp_path / 'demo', train=2, val=1)
    assert not (tmp_path / 'demo').exists()
    assert make_demo_data(tmp_path / 'demo', train=2, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ['demo']


def test_scenes_are_as_varied_as_promised(scenes):
    content = read(scenes, 'train')
    per_image = np.bincount([a['image_id'] for a in content['annotations']], minlength=61)[1:]
    assert per_image.min() == 0 and per_image.max() == MAX_DIGITS
    assert {a['category_id'] for a in content['annotations']} == set(range(1, 11))
    sides = np.array([max(a['bbox'][2:]) for a in content['annotations']])
    assert sides.min() < 20 and 45 < sides.max() <= 70
    for annotation in content['annotations']:
        x, y, width, height = annotation['bbox']
        assert x >= 0 and y >= 0 and x + width <= 160 and y + height <= 160
        assert annotation['area'] == width * height > 0
    picture = cv2.imread(str(scenes / 'images' / content['images'][0]['file_name']))
    assert picture.shape == (160, 160, 3)


def test_boxes_are_tight_around_the_ink():
    scan = np.zeros((8, 8), np.float32)
    scan[2:6, 3:5] = 1
    rng = np.random.default_rng(0)
    ink, left, top, (x, y, width, height) = place_digit(rng, scan, [])
    inside = np.zeros(ink.shape, bool)
    inside[y - top : y - top + height, x - left : x - left + width] = True
    assert (ink[~inside] <= 0.3).all()
    edges = [inside.nonzero()[axis] for axis in (0, 1)]
    for axis in (0, 1):
        for border in (edges[axis].min(), edges[axis].max()):
            assert np.take(ink, border, axis=axis).max() > 0.3
