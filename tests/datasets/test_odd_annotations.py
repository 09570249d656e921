"""Annotation files that are nearly in COCO's format: each gets the words that help."""

import copy
import json
import shutil

import pytest
from mmengine.config import Config

from ddetr_plugin.cli import run_command
from ddetr_plugin.data_checks import (
    Split,
    check_annotations,
    check_capacity,
    check_config,
    check_splits,
    find_missing,
    has_errors,
    read_annotations,
    read_json,
    to_pixels,
)
from ddetr_plugin.data_checks.box_forms import BOX_FORMS, normalised_form
from ddetr_plugin.data_checks.reading import PLAIN, encoding_of
from ddetr_plugin.data_checks.segments import check_segments
from ddetr_plugin.data_checks.whereabouts import Whereabouts
from ddetr_plugin.intake.checks import describe

SIZE = WIDTH, HEIGHT = 200, 100


def make_content(count=10):
    """A file of ten images with a box and a mask each, of two classes."""
    images = [
        dict(id=i, file_name=f'{i}.jpg', width=WIDTH, height=HEIGHT) for i in range(1, count + 1)
    ]
    annotations = [
        dict(
            id=i,
            image_id=i,
            category_id=1 + i % 2,
            bbox=[15.0 * i, 40, 50, 20],
            area=1000,
            iscrowd=0,
            segmentation=[[15.0 * i, 40, 15 * i + 50, 40, 15 * i + 50, 60, 15 * i, 60]],
        )
        for i in range(1, count + 1)
    ]
    categories = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    return dict(images=images, annotations=annotations, categories=categories)


def edited(change):
    """A content whose annotations were changed by a function of one and its number."""
    content = make_content()
    for number, annotation in enumerate(content['annotations']):
        change(annotation, number)
    return content


def found_in(content, tmp_path, scored=True):
    return check_annotations(tmp_path / 'a.json', content, training=True, scored=scored)


def learned(content, tmp_path):
    """How many boxes mmdet learns from: the premise of what findings say."""
    from mmdet.datasets import CocoDataset

    file = tmp_path / 'learned.json'
    file.write_text(json.dumps(content))
    names = tuple(c['name'] for c in content['categories'])
    data = CocoDataset(ann_file=str(file), metainfo=dict(classes=names), lazy_init=True)
    data.data_prefix = dict(img='')
    return sum(not i['ignore_flag'] for d in data.load_data_list() for i in d['instances'])


def test_a_good_file_has_no_findings(tmp_path):
    assert found_in(make_content(), tmp_path) == []
    assert learned(make_content(), tmp_path) == 10


@pytest.mark.parametrize(
    ('change', 'level', 'kind', 'words', 'number'),
    [
        (lambda a, n: a.update(iscrowd=int(n > 0)), 'warning', 'many annotations are marked as cro',
         ['9 of 10 annotations (90%)', 'set it to 0'], 1),
        (lambda a, n: a.update(iscrowd=1), 'error', 'no boxes but regions of crowds',
         ['all 10 have iscrowd 1', 'set it to 0'], 0),
        (lambda a, n: a.update(ignore=int(n < 3)), 'warning', 'annotations that are marked to be i',
         ['3 of 10 annotations (30%)', 'neither trained nor scored'], 7),
        (lambda a, n: a.update(ignore=int(n < 1)), 'note', 'annotations that are marked to be i',
         ['1 of 10'], 9),
        (lambda a, n: a.update(ignore=1), 'error', 'no boxes at all', ['10 have ignore 1'], 0),
        (lambda a, n: a.update(area=0), 'warning', 'annotations whose area is not positive',
         ['neither trained nor scored'], 0),
        (lambda a, n: a.update(bbox=[9, 9, 0.5, 20]), 'warning', 'boxes thinner than a pixel',
         ['neither trained nor scored'], 0),
        (lambda a, n: a.update(attributes=dict(rotation=30.0 * (n < 2))), 'warning',
         'rotated rectangles', ['2 of 10 annotations', '30 degrees', 'boxes are upright'], 10),
    ],
    ids=['most crowds', 'all crowds', 'a third ignored', 'one ignored', 'all ignored', 'area 0',
         'thin', 'rotated'],
)  # fmt: skip
def test_what_is_not_learned_is_said_with_its_share(tmp_path, change, level, kind, words, number):
    content = edited(change)
    found = next(f for f in found_in(content, tmp_path) if f.kind.startswith(kind))
    assert found.level == level
    for word in words:
        assert word in f'{found.detail} {found.remedy}'
    assert 'right file' not in found.remedy
    # The premise, in mmdet.
    assert learned(content, tmp_path) == number


@pytest.mark.parametrize(
    'change',
    [
        lambda a, n: a.update(iscrowd=int(n < 2)),
        lambda a, n: a.update(attributes=dict(rotation=(0.0, 180, -180, 360)[n % 4])),
        lambda a, n: a.update(attributes=dict(rotation=None), ignore=0),
        lambda a, n: a.update(attributes=[]),
    ],
    ids=['some crowds', 'half turns', 'no rotation', 'a list'],
)
def test_what_is_usual_is_passed_over(tmp_path, change):
    kinds = [f.kind for f in found_in(edited(change), tmp_path) if f.level == 'warning']
    assert set(kinds) <= {'pictures with regions of crowds alone'}


@pytest.mark.parametrize(
    ('change', 'kind', 'words'),
    [
        (lambda a, n: a.update(category_id=str(a['category_id'])),
         'annotations of unknown classes',
         ["category_id '2' (text)", 'the id 2 (an integer)', 'write ids as integers']),
        (lambda a, n: a.update(image_id=str(a['image_id'])), 'annotations of unknown pictures',
         ["image_id '1' (text)", 'the id 1 (an integer)', 'write ids as integers']),
        (lambda a, n: a.update(category_id=7), 'annotations of unknown classes',
         ['category_id 7', 'add it to categories']),
        (lambda a, n: a.pop('bbox'), 'annotations with a mask, but no box',
         ['has segmentation, but no bbox', 'write the bbox around it']),
        (lambda a, n: a.update(keypoints=[1, 2, 2], bbox=[]) or a.pop('segmentation'),
         'annotations with a mask, but no box', ['has keypoints, but no bbox']),
        (lambda a, n: a.update(bbox=[50, 50, 20, 10, 0.3]), 'boxes of five numbers',
         ['boxes are upright']),
        (lambda a, n: a.update(bbox=[50, None, 20, 10]), 'boxes that are not four finite numbers',
         ['bbox [50, None, 20, 10]']),
    ],
    ids=['text class', 'text image', 'no such class', 'mask', 'keypoints', 'angle', 'null'],
)  # fmt: skip
def test_what_no_training_can_use_is_an_error_that_says_what_it_is(tmp_path, change, kind, words):
    findings = found_in(edited(change), tmp_path)
    found = [f for f in findings if f.kind == kind]
    assert len(found) == 10 and found[0].level == 'error'
    for word in words:
        assert word in f'{found[0].detail} {found[0].remedy}'
    # No word of crowds, where there are none.
    for finding in findings:
        assert 'crowd' not in finding.detail, finding


@pytest.mark.parametrize('form', BOX_FORMS)
def test_normalised_boxes_are_an_error_that_names_their_form_and_can_be_scaled(tmp_path, form):
    content = make_content()
    expected = copy.deepcopy(content)
    for annotation in content['annotations']:
        x, y, width, height = annotation['bbox']
        numbers = {
            'normalised': (x, y, width, height),
            'normalised-xyxy': (x, y, x + width, y + height),
            'normalised-cxcywh': (x + width / 2, y + height / 2, width, height),
        }[form]
        annotation['bbox'] = [value / SIZE[i % 2] for i, value in enumerate(numbers)]
        annotation['area'] = annotation['area'] / WIDTH / HEIGHT
        (polygon,) = annotation['segmentation']
        annotation['segmentation'] = [[v / SIZE[i % 2] for i, v in enumerate(polygon)]]
    found = [f for f in found_in(content, tmp_path) if f.level != 'note']
    assert [(f.level, f.kind) for f in found] == [('error', 'boxes that are normalised to 0..1')]
    assert f'--boxes {form}, or' in found[0].remedy
    # The premise, in mmdet: nearly nothing would be learned.
    if form != 'normalised-xyxy':
        assert learned(content, tmp_path) == 0
    before = copy.deepcopy(content)
    scaled = to_pixels(content, form)
    assert content == before
    for annotation, right in zip(scaled['annotations'], expected['annotations']):
        assert annotation['bbox'] == pytest.approx(right['bbox'])
        assert annotation['area'] == pytest.approx(right['area'])
        assert annotation['segmentation'][0] == pytest.approx(right['segmentation'][0])
    assert found_in(scaled, tmp_path) == []


@pytest.mark.parametrize('area', [0, 1, 0.9], ids=['few pixels', 'one pixel', 'product of corners'])
def test_an_area_that_was_counted_in_shares_becomes_that_of_the_box(area):
    content = make_content()
    for annotation in content['annotations']:
        annotation['bbox'] = [v / SIZE[i % 2] for i, v in enumerate(annotation['bbox'])]
        annotation['area'] = area
    for annotation in to_pixels(content, 'normalised')['annotations']:
        assert annotation['area'] == pytest.approx(1000)


def test_boxes_that_are_no_shares_of_their_image_are_not_scaled():
    with pytest.raises(ValueError, match='no normalised box within its image; --boxes has'):
        to_pixels(make_content(), 'normalised')


@pytest.mark.parametrize(
    'box', [[0, 0, 1, 1], [10, 20, 30.5, 40], [0.5, 0.5, 30, 40], [0.2, 0.9, 3.5, 0.7]]
)
def test_boxes_in_pixels_are_not_taken_for_normalised_ones(box):
    assert normalised_form(edited(lambda a, n: a.update(bbox=box))) is None


def test_one_small_box_among_others_is_no_sign():
    content = edited(lambda a, n: a.update(bbox=[0.1, 0.1, 0.5, 0.5]) if n < 8 else None)
    assert normalised_form(content) is None


@pytest.mark.parametrize(
    'encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32']
)
def test_json_of_any_encoding_is_read_and_what_mmdet_cannot_is_an_error(
    tiny_job, tiny_coco, tmp_path, encoding
):
    from mmdet.datasets import CocoDataset

    content = json.loads(tiny_coco.annotations.read_text())
    content['info'] = dict(author='Jürgen 橋本')
    content['annotations'][0]['segmentation'] = [[1, 2, 9, 2, 9, 8]]
    file = tmp_path / 'train.json'
    file.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert read_json(file) == content
    assert read_annotations(file) == content
    quick = read_annotations(file, polygons=False)
    assert quick['annotations'].pop(0)['segmentation'] == []
    assert quick['annotations'] == content['annotations'][1:]
    assert (encoding_of(file) == PLAIN) == (encoding == 'utf-8')
    config = Config.fromfile(tiny_job(**{'train_dataloader.dataset.ann_file': str(file)}))
    errors = [f for f in check_config(config) if f.level == 'error']
    # The premise, in mmdet.
    data = CocoDataset(ann_file=str(file), lazy_init=True)
    data.data_prefix = dict(img='')
    try:
        data.load_data_list()
        fails = False
    except ValueError:
        fails = True
    assert fails == (encoding != 'utf-8')
    assert [f.kind for f in errors] == ['annotation files that pycocotools cannot read'] * fails
    assert all('save it as UTF-8' in f.remedy for f in errors)


def test_json_in_an_encoding_that_json_cannot_have_says_so(tmp_path):
    file = tmp_path / 'a.json'
    file.write_bytes(json.dumps(dict(author='Jürgen'), ensure_ascii=False).encode('latin-1'))
    with pytest.raises(ValueError, match='it is not UTF-8 .byte 13 is 0xfc.*Save it as UTF-8'):
        read_json(file)
    file.write_bytes(json.dumps(dict(author='x')).encode('utf-16')[:-1])
    with pytest.raises(ValueError, match='it is no UTF-16'):
        read_json(file)


@pytest.mark.parametrize(
    ('train', 'val', 'remedy'),
    [
        ('abc', 'ac', 'write the categories of train.json, in its order, into val.json'),
        ('abc', 'cba', 'write the categories of train.json, in its order, into val.json'),
        ('ac', 'abc', 'write the categories of val.json, in its order, into train.json'),
        ('ab', 'bc', 'write all categories of both, in one order, into train.json and val.json'),
    ],
)
def test_the_file_that_names_all_classes_is_the_one_to_copy_from(tmp_path, train, val, remedy):
    splits = []
    for split, names in (('train', train), ('val', val)):
        content = dict(make_content(1), categories=[dict(id=ord(n), name=n) for n in names])
        splits.append(Split(split, tmp_path / f'{split}.json', tmp_path / split, content))
    (found,) = check_splits(*splits)
    assert found.remedy.replace(f'{tmp_path}/', '') == remedy


@pytest.mark.parametrize(
    ('name', 'files', 'words'),
    [
        ('my%20image.jpg', ['images/my image.jpg'], "there is 'my image.jpg': the name is URL-enc"),
        ('a\\b.jpg', ['images/a/b.jpg'], "there is 'a/b.jpg': the name has \\ instead of /"),
        ('b.JPG', ['images/b.jpg'], 'images/b.jpg, whose suffix is written .jpg'),
        ('B.jpg', ['images/b.jpg'], 'images/b.jpg, whose name differs in capitals'),
        ('b.jpg', ['images/b.png'], 'images/b.png, a .png file'),
        ('b.jpg', ['images/default/b.jpg'], 'there is ROOT/images/default/b.jpg'),
        ('b.jpg', ['data/b.jpg', 'images/c.jpg'], 'there is ROOT/data/b.jpg'),
        ('x/b.jpg', ['images/1/b.jpg', 'images/2/b.jpg'], '2 files are called so, such as ROOT/im'),
        ('http://host/d/b%2B.jpg', ['images/b+.jpg'], 'there is ROOT/images/b+.jpg'),
        ('b.jpg', ['images/c.jpg'], None),
    ],
)
def test_a_missing_image_is_looked_for(tmp_path, name, files, words):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    image = dict(id=1, file_name=name)
    near = Whereabouts([tmp_path / 'images', tmp_path])
    found = find_missing(tmp_path / 'images', [image], whereabouts=near)[0]
    detail = found.detail.replace(str(tmp_path), 'ROOT')
    assert found.level == 'error'
    if (tmp_path / 'images').is_dir():
        assert found.kind == 'missing pictures'
        assert (words or 'not there') in detail and ('but' in detail) == bool(words)


def test_a_missing_folder_says_where_its_images_are(tmp_path):
    for number in range(4):
        file = tmp_path / 'images' / 'default' / 'a' / f'{number}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    images = [dict(id=i, file_name=f'a/{i}.jpg') for i in range(5)]
    (found,) = find_missing(tmp_path / 'train', images, whereabouts=Whereabouts([tmp_path]))
    assert found.kind == 'missing folders'
    assert found.detail.endswith(f'4 of them are in {tmp_path}/images/default')


def crowded(boxes_of_images):
    content = make_content(len(boxes_of_images))
    one = content['annotations'][0]
    content['annotations'] = [
        dict(one, id=10000 * i + k + 1, image_id=i)
        for i, count in enumerate(boxes_of_images, 1)
        for k in range(count)
    ]
    return content


OURS = dict(query_head=dict(num_queries=5), bbox_head=dict(max_per_img=3))


@pytest.mark.parametrize(
    ('model', 'counts', 'scored', 'words'),
    [
        (OURS, [20, 4, 1, 0], True,
         ['1 of 3 images with boxes (33%) have more than model.query_head.num_queries=5, up to 20',
          '2 of 3 images with boxes (67%) have more than model.bbox_head.max_per_img=3, up to 20']),
        (OURS, [20, 4, 1], False, ['num_queries=5']),
        (OURS, [3, 3], True, []),
        (dict(query_head=dict(num_queries=150)), [120], True, ['model.bbox_head.max_per_img=100']),
        (dict(num_queries=5, bbox_head=dict(), test_cfg=dict(max_per_img=6)), [7], True,
         ['model.num_queries=5', 'model.test_cfg.max_per_img=6']),
        (dict(num_queries=5, bbox_head=dict()), [101], True,
         ['model.num_queries=5', 'model.test_cfg.max_per_img=100']),
        (dict(roi_head={}, test_cfg=dict(rpn={}, rcnn=dict(max_per_img=5))), [6], True,
         ['model.test_cfg.rcnn.max_per_img=5']),
        ({}, [500], True, []),
    ],
)  # fmt: skip
def test_images_with_more_boxes_than_a_model_can_find_are_counted(
    tmp_path, model, counts, scored, words
):
    found = check_capacity(model, tmp_path / 'a.json', crowded(counts), None, scored)
    assert [f.level for f in found] == ['warning'] * len(words)
    for finding, word in zip(found, words):
        assert word in finding.detail
        assert str(max(counts)) in finding.remedy
        best = "COCO's AP counts the best 100"
        assert (best in finding.remedy) == (max(counts) > 100 and 'max_per_img' in word)


def test_boxes_that_are_not_learned_need_no_query(tmp_path):
    content = crowded([8])
    for number, annotation in enumerate(content['annotations']):
        annotation.update([dict(iscrowd=1), dict(ignore=1), dict(category_id=1), {}][number % 4])
    assert check_capacity(OURS, tmp_path, content, ('cat', 'dog'), True)
    assert check_capacity(OURS, tmp_path, content, ('dog',), True) == []


def test_the_check_of_a_config_counts_queries(tiny_job):
    config = Config.fromfile(tiny_job())
    assert not [f for f in check_config(config) if 'more boxes' in f.kind]
    config.model.query_head.num_queries = 1
    found = [f for f in check_config(config) if 'more boxes' in f.kind]
    assert found and not has_errors(found)


def test_many_crowds_among_segments_are_counted_too(tmp_path):
    content = dict(make_content(2), annotations=[])
    for image_id in (1, 2):
        segments = [
            dict(id=k, category_id=1, bbox=[1, 1, 9, 9], area=50, iscrowd=int(k > 1))
            for k in (1, 2)
        ]
        content['annotations'].append(dict(image_id=image_id, segments_info=segments))
    found = check_segments(tmp_path / 'a.json', content, training=True)
    (crowds,) = [f for f in found if f.kind == 'many segments are marked as crowds']
    assert (crowds.level, crowds.part) == ('warning', 'segment')
    assert '2 of 4 segments (50%)' in crowds.detail


def test_normalised_boxes_of_a_folder_are_read_by_an_option(tiny_coco, tmp_path, capsys):
    content = json.loads(tiny_coco.annotations.read_text())
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    for annotation in content['annotations']:
        size = sizes[annotation['image_id']]
        annotation['bbox'] = [value / size[i % 2] for i, value in enumerate(annotation['bbox'])]
    folder = tmp_path / 'data'
    shutil.copytree(tiny_coco.images, folder / 'images')
    (folder / 'annotations').mkdir()
    file = folder / 'annotations' / 'instances_train.json'
    file.write_text(json.dumps(content))
    before = file.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        run_command('check', [str(folder)])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert 'error: boxes that are normalised to 0..1 (1)' in printed
    assert 'read them by --boxes normalised' in printed
    run_command('check', [str(folder), '--boxes', 'normalised'])
    assert 'nothing stands in the way' in capsys.readouterr().out
    assert file.read_bytes() == before


def test_the_summary_does_not_count_images_in_a_folder_that_is_not_there(tmp_path):
    split = Split('train', tmp_path / 'a.json', tmp_path / 'images', make_content())
    assert 'which does not exist' in describe(split)
    (tmp_path / 'images').mkdir()
    assert 'which does not exist' not in describe(split)
