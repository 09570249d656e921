"""Odd annotation files: what is clear is read, what is not is an error that lists the choices."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from forked import run_forked
from layouts import (
    CLASSES,
    LAYOUTS,
    coco,
    numbered,
    outline,
    put,
    read_items,
    write_json,
    write_text,
    write_voc,
    yolo_lines,
)
from PIL import Image
from pycocotools import mask as coco_mask

from ddetr_plugin.apis.config_reading import load_config
from ddetr_plugin.cli import run_command
from ddetr_plugin.data_checks import check_config
from ddetr_plugin.intake import read_folder, repair_config
from ddetr_plugin.intake.checks import check_data


@pytest.fixture
def items(tiny_coco):
    return read_items(tiny_coco)


@pytest.fixture
def folder(tmp_path, items):
    """Images in `images/`, and a function that writes result.json and reads the folder."""
    names = numbered(items)
    for item, name in zip(items, names):
        put(item, tmp_path / 'data/images' / name)

    def read(change, name='result.json', **options):
        content = coco(items, names, 1, 1, 1)
        change(content)
        write_json(tmp_path / 'data' / name, content)
        return read_folder(tmp_path / 'data', **options)

    read.path, read.names = tmp_path / 'data', names
    return read


def errors(data):
    return [f.kind for f in check_data(data) if f.level == 'error']


def truth(items):
    """The content that odd files should be read as."""
    return coco(items, numbered(items), 1, 1, 1)


def boxes(content):
    """(name of the image, name of the class, box) of all annotations."""
    images = {i['id']: i['file_name'].split('/')[-1] for i in content['images']}
    classes = {c['id']: c['name'] for c in content['categories']}
    return [
        (images[a['image_id']], classes[a['category_id']], [round(v, 3) for v in a['bbox']])
        for a in content['annotations']
    ]


def each(part, change):
    """A change of every entry of a part."""
    return lambda content: [change(entry) for entry in content[part]]


def both(*changes):
    return lambda content: [change(content) for change in changes]


def text(*fields):
    return lambda entry: entry.update({f: str(entry[f]) for f in fields})


def without(*fields):
    return lambda entry: [entry.pop(f) for f in fields]


def masked(encode):
    def change(entry):
        entry['segmentation'] = encode(outline(entry.pop('bbox')))

    return change


def rle(polygon):
    return coco_mask.merge(coco_mask.frPyObjects([polygon], 48, 64))


def compressed(polygon):
    encoded = rle(polygon)
    return dict(size=encoded['size'], counts=encoded['counts'].decode())


def uncompressed(polygon):
    mask = coco_mask.decode(rle(polygon)).ravel(order='F')
    edges = np.flatnonzero(np.diff(mask)) + 1
    counts = np.diff([0, *edges, mask.size]).tolist()
    return dict(size=[48, 64], counts=counts if not mask[0] else [0, *counts])


def keypoints(entry):
    x, y, w, h = entry.pop('bbox')
    # The last one is not labelled.
    entry['keypoints'] = [x, y, 2, x + w, y + h, 1, 0, 0, 0]


def by_name(content):
    for annotation in content['annotations']:
        annotation['category_id'] = CLASSES[annotation['category_id'] - 1]


REPAIRED = dict(
    annotation_ids_from_0=each('annotations', lambda a: a.update(id=a['id'] - 1)),
    annotation_ids_that_are_uuids=each('annotations', lambda a: a.update(id=f'a-{a["id"]}')),
    annotation_ids_that_repeat=each('annotations', lambda a: a.update(id=1 + a['id'] // 2)),
    annotations_without_id=each('annotations', without('id')),
    image_ids_as_text=each('images', text('id')),
    image_ids_as_text_where_they_are_used=each('annotations', text('image_id')),
    image_ids_that_are_uuids=both(
        each('images', lambda i: i.update(id=f'u{i["id"]}')),
        each('annotations', lambda a: a.update(image_id=f'u{a["image_id"]}')),
    ),
    image_ids_with_a_point=each('images', lambda i: i.update(id=float(i['id']))),
    image_ids_of_two_kinds=both(
        lambda c: c['images'][0].update(id='first'),
        each('annotations', lambda a: a['image_id'] == 1 and a.update(image_id='first')),
    ),
    category_ids_as_text=each('categories', text('id')),
    category_ids_as_text_where_they_are_used=each('annotations', text('category_id')),
    category_ids_that_are_names=by_name,
    category_names_that_are_numbers=both(
        each('categories', lambda c: c.update(name=c['id'])), lambda c: None
    ),
    numbers_as_text=both(
        each('images', text('width', 'height')),
        each('annotations', text('area', 'iscrowd')),
        each('annotations', lambda a: a.update(bbox=[str(v) for v in a['bbox']])),
    ),
    crowds_that_are_truth_values=each('annotations', lambda a: a.update(iscrowd=False)),
    no_area=each('annotations', without('area')),
    areas_that_are_not_finite=each('annotations', lambda a: a.update(area=float('nan'))),
    no_iscrowd=each('annotations', without('iscrowd')),
    no_size=each('images', without('width', 'height')),
    size_of_zero=each('images', lambda i: i.update(width=0, height=0)),
    no_box_but_polygons=each('annotations', masked(lambda polygon: [polygon])),
    no_box_but_rle=each('annotations', masked(compressed)),
    no_box_but_uncompressed_rle=each('annotations', masked(uncompressed)),
    no_box_but_keypoints=each('annotations', keypoints),
    names_with_folders_of_elsewhere=each(
        'images', lambda i: i.update(file_name=f'C:\\Users\\me\\{i["file_name"]}')
    ),
    names_in_capitals=each('images', lambda i: i.update(file_name=i['file_name'].upper())),
    names_with_another_suffix=each(
        'images', lambda i: i.update(file_name=i['file_name'].replace('.png', '.jpeg'))
    ),
    names_under_another_key=each('images', lambda i: i.update(path=i.pop('file_name'))),
)


@pytest.mark.parametrize('name', REPAIRED)
def test_what_is_clear_is_repaired_and_listed(folder, items, name):
    data = folder(REPAIRED[name])
    assert errors(data) == []
    expected = boxes(truth(items))
    if name == 'category_names_that_are_numbers':
        expected = [(i, str(CLASSES.index(c) + 1), box) for i, c, box in expected]
    assert boxes(data.train.content) == expected
    assert data.changes.lines()
    for annotation in data.train.content['annotations']:
        x, y, width, height = annotation['bbox']
        assert annotation['area'] == width * height and annotation['iscrowd'] == 0
        assert type(annotation['id']) is int and annotation['id'] >= 1
    for image in data.train.content['images']:
        assert (image['width'], image['height']) == (64, 48)


def test_a_file_that_is_right_is_used_as_it_is(folder, tmp_path):
    data = folder(lambda content: None)
    assert not data.changes
    placed = data.place(tmp_path / 'work')
    assert placed.train.ann_file == folder.path / 'result.json'
    placed.write(tmp_path / 'work')
    assert list((tmp_path / 'work').iterdir()) == []


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32'])
def test_files_of_other_encodings_are_read_and_written_anew(folder, items, tmp_path, encoding):
    folder(lambda content: None)
    path = folder.path / 'result.json'
    path.write_bytes(path.read_text().encode(encoding))
    data = read_folder(folder.path).place(tmp_path)
    data.write(tmp_path)
    written = json.loads((tmp_path / 'instances_train.json').read_text(encoding='utf-8'))
    assert boxes(written) == boxes(truth(items))


def test_what_is_converted_is_written(folder, tmp_path):
    data = folder(lambda content: None).convert(lambda c: dict(c, annotations=[]), 'emptied')
    data = data.place(tmp_path)
    data.write(tmp_path)
    assert json.loads(data.train.ann_file.read_text())['annotations'] == []
    assert data.train.ann_file == tmp_path / 'instances_train.json'


def test_what_was_written_into_the_folder_itself_is_not_read_again(folder):
    data = folder(REPAIRED['annotation_ids_from_0'])
    work = folder.path / 'work_dirs/data'
    data.place(work).write(work)
    again = read_folder(folder.path)
    assert again.train == data.train and errors(again) == []


def test_all_changes_are_written_with_what_was_before(folder, tmp_path):
    data = folder(REPAIRED['annotation_ids_from_0'])
    data.place(tmp_path).write(tmp_path)
    (entry,) = json.loads((tmp_path / 'data_changes.json').read_text())
    assert entry['kind'] == 'annotation ids'
    count = len(data.train.content['annotations'])
    assert [[b, a] for _, b, a in entry['changes']] == [[i, i + 1] for i in range(count)]


def test_a_missing_size_is_that_of_the_upright_image(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (64, 48)).save(folder.path / 'images/turned.jpg', exif=exif)
    decoded = cv2.imread(str(folder.path / 'images/turned.jpg'))
    entry = dict(id=99, file_name='turned.jpg')
    data = folder(lambda content: content['images'].append(entry))
    image = data.train.content['images'][-1]
    assert (image['height'], image['width']) == decoded.shape[:2] == (64, 48)


@pytest.mark.parametrize(
    ('change', 'kind'),
    [
        (lambda c: c['images'].append(dict(c['images'][0])), 'images without an id of their own'),
        (lambda c: c['annotations'][0].update(image_id=99), 'annotations of unknown pictures'),
        (
            lambda c: c['annotations'][0].update(category_id='pear'),
            'annotations of unknown classes',
        ),
        (each('annotations', lambda a: a.update(area=0)), 'no boxes at all'),
        (lambda c: c['annotations'][0].pop('bbox'), 'boxes that are not four finite numbers'),
        (lambda c: c['annotations'][0].update(bbox='wide'), 'boxes that are not four finite'),
        (lambda c: c['images'][0].update(file_name='gone.png'), 'missing pictures'),
    ],
)
def test_what_cannot_be_known_stays_an_error(folder, change, kind):
    assert any(found.startswith(kind) for found in errors(folder(change)))


def test_a_name_that_two_images_fit_is_an_error_with_both(folder, items):
    put(items[1], folder.path / 'other/0000.png')
    (folder.path / 'images').rename(folder.path / 'deep')
    data = folder(lambda c: c['images'][0].update(file_name='elsewhere/0000.png'))
    (found,) = [f for f in data.findings if f.kind == 'names that several images fit']
    assert 'deep/0000.png' in found.detail and 'other/0000.png' in found.detail


def test_two_names_that_fit_one_image_are_an_error(folder):
    def change(content):
        content['images'][0]['file_name'] = 'a/0003.png'
        content['images'][3]['file_name'] = 'b/0003.png'

    data = folder(change)
    assert [f.kind for f in data.findings] == ['images that several names fit']


def test_an_image_of_the_other_split_is_not_taken_for_a_missing_one(tmp_path, items):
    LAYOUTS['cvat_project'](tmp_path, items)
    (tmp_path / 'images/Validation/0001.png').unlink()
    assert (tmp_path / 'images/Train/0001.png').is_file()
    data = read_folder(tmp_path)
    assert 'missing pictures' in errors(data)


def test_images_in_a_folder_of_the_other_split_are_found_where_all_are(tmp_path, items):
    """Who splits annotations alone leaves the images where they were."""
    for word, part in (('train', items[:6]), ('val', items[6:])):
        names = [i.path.name for i in part]
        write_json(tmp_path / f'{word}.json', coco(part, names, 1, 1, 1))
    for item in items:
        put(item, tmp_path / 'train_images' / item.path.name)
    data = read_folder(tmp_path)
    assert errors(data) == []
    assert data.val.image_folder == tmp_path / 'train_images'


def test_folders_with_different_images_of_the_same_names_are_an_error(folder, items):
    for item, name in zip(items[::-1], folder.names):
        put(item, folder.path / 'data' / name)
    with pytest.raises(ValueError, match='several folders, and they differ: .*images.*data'):
        folder(lambda content: None)


def test_copies_of_the_images_do_not_matter(folder):
    shutil.copytree(folder.path / 'images', folder.path / 'data')
    assert errors(folder(lambda content: None)) == []


def test_two_annotation_files_of_no_split_are_an_error_and_one_can_be_named(folder):
    folder(lambda content: None)
    with pytest.raises(ValueError, match='several files of train annotations: again.json, result'):
        folder(lambda content: content['annotations'].pop(), 'again.json')
    data = read_folder(folder.path / 'again.json')
    assert data.train.ann_file.name == 'again.json' and errors(data) == []


def test_two_annotation_files_that_are_equal_are_one(folder):
    folder(lambda content: None)
    assert errors(folder(lambda content: None, 'copy.json')) == []


def test_keypoints_and_captions_beside_boxes_are_left_out(folder):
    folder(lambda content: None, 'annotations/person_keypoints_train.json')
    write_json(folder.path / 'annotations/captions_train.json', dict(images=[], annotations=[]))
    data = folder(lambda content: None, 'annotations/instances_train.json')
    assert data.train.ann_file.name == 'instances_train.json'


def test_the_only_annotation_file_is_the_trainings_whatever_it_is_called(folder):
    assert folder(lambda content: None, 'val.json').train.ann_file.name == 'val.json'


def test_a_super_class_can_be_kept(tmp_path, items):
    LAYOUTS['roboflow_coco'](tmp_path, items)
    assert read_folder(tmp_path).train.classes == CLASSES
    assert read_folder(tmp_path, keep_super_classes=True).train.classes == ['shapes', *CLASSES]


def test_a_super_class_with_boxes_is_a_class(tmp_path, items):
    LAYOUTS['roboflow_coco'](tmp_path, items)
    path = tmp_path / 'valid/_annotations.coco.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['category_id'] = 0
    path.write_text(json.dumps(content))
    data = read_folder(tmp_path)
    assert data.train.classes == data.val.classes == ['shapes', *CLASSES]


def test_a_super_class_of_the_name_of_its_class_is_left_out(tmp_path, items):
    LAYOUTS['roboflow_coco'](tmp_path, items)
    for path in tmp_path.glob('*/_annotations.coco.json'):
        content = json.loads(path.read_text())
        content['categories'] = [
            dict(id=0, name='square', supercategory='none'),
            dict(id=1, name='square', supercategory='square'),
        ]
        for annotation in content['annotations']:
            annotation['category_id'] = 1
        path.write_text(json.dumps(content))
    data = read_folder(tmp_path)
    for split in (data.train, data.val):
        assert [c['id'] for c in split.content['categories']] == [1]
    assert errors(data) == []


def test_lists_where_text_should_be_are_no_traceback(folder):
    read = folder(each('categories', lambda c: c.update(supercategory=['shapes'])))
    assert read.train.classes == CLASSES
    with pytest.raises(ValueError, match=r'no usable image_id \(found \[1\]\)'):
        folder(lambda c: c['annotations'][0].update(image_id=[1]))
    with pytest.raises(ValueError, match=r'no usable id \(found \[1\]\)'):
        folder(lambda c: c['images'][0].update(id=[1]))


@pytest.mark.parametrize('fewer', [False, True])
def test_classes_in_another_order_are_matched_by_name(tmp_path, items, fewer):
    splits = LAYOUTS['datumaro'](tmp_path, items)
    path = tmp_path / 'annotations/instances_val.json'
    content = json.loads(path.read_text())
    expected = boxes(content)
    content['categories'].reverse()
    if fewer:
        gone = content['categories'].pop(0)['id']
        content['annotations'] = [a for a in content['annotations'] if a['category_id'] != gone]
        expected = boxes(content)
    path.write_text(json.dumps(content))
    data = read_folder(tmp_path)
    assert data.val.classes == data.train.classes == CLASSES
    assert boxes(data.val.content) == expected
    assert errors(data) == [] and splits


def test_a_class_that_the_training_lacks_stays_an_error(tmp_path, items):
    LAYOUTS['datumaro'](tmp_path, items)
    path = tmp_path / 'annotations/instances_val.json'
    path.write_text(path.read_text().replace('"bar"', '"pole"'))
    assert 'classes of the splits differ' in errors(read_folder(tmp_path))


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('3 0.5 0.5 0.1 0.1', 'classes from 0 to 2'),
        ('0 32 24 10 10', 'not all are from 0 to 1'),
        ('0 0.5 0.5 0.1 0.1 0.9', 'has 5 numbers after the class'),
        ('0 0.5 0.5', 'has 2 numbers'),
        ('bar 0.5 0.5 0.1 0.1', 'not all are numbers'),
        ('0 nan 0.5 0.1 0.1', 'not all are from 0 to 1'),
    ],
)
def test_labels_of_yolo_that_cannot_be_read_are_named(tmp_path, items, line, message):
    LAYOUTS['yolo_roboflow'](tmp_path, items)
    path = tmp_path / 'train/labels/0001.txt'
    path.write_text(f'{path.read_text()}\n{line}\n')
    (found,) = read_folder(tmp_path).findings
    assert found.level == 'error' and found.file == str(path) and message in found.detail


def test_yolo_without_class_names_is_an_error(tmp_path, items):
    LAYOUTS['yolo_label_studio'](tmp_path, items)
    (tmp_path / 'classes.txt').unlink()
    with pytest.raises(ValueError, match='no class names. Write one classes.txt'):
        read_folder(tmp_path)


def test_a_data_yaml_that_cannot_be_read_is_named(tmp_path, items):
    LAYOUTS['yolo_roboflow'](tmp_path, items)
    (tmp_path / 'data.yaml').write_text('names: [square, bar\ntrain: train/images\n')
    with pytest.raises(ValueError, match=r'data\.yaml cannot be read \(while parsing'):
        read_folder(tmp_path)


def test_an_image_without_label_file_is_background(tmp_path, items):
    LAYOUTS['yolo_roboflow'](tmp_path, items)
    (tmp_path / 'train/labels/0000.txt').unlink()
    content = read_folder(tmp_path).train.content
    assert len(content['images']) == 6
    assert 1 not in {a['image_id'] for a in content['annotations']}


def test_poses_of_yolo_are_read_as_boxes(tmp_path, items):
    put(items[0], tmp_path / 'images/a.png')
    lines = [f'{line} 0.5 0.5 2 0.1 0.1 0' for line in yolo_lines(items[0])]
    write_text(tmp_path / 'labels/a.txt', *lines)
    write_text(tmp_path / 'pose.yaml', 'train: images', 'kpt_shape: [2, 3]', f'names: {CLASSES}')
    content = read_folder(tmp_path).train.content
    assert [box for _, _, box in boxes(content)] == [box for _, box in items[0].objects]


def test_yolo_whose_images_are_not_there_says_where_it_looked(tmp_path, items):
    LAYOUTS['yolo_roboflow'](tmp_path, items)
    shutil.rmtree(tmp_path / 'valid')
    with pytest.raises(ValueError, match='no images in ../valid/images .val.; looked below'):
        read_folder(tmp_path)


def test_difficult_objects_of_voc_are_ignored(tmp_path, items):
    LAYOUTS['labelimg'](tmp_path, items)
    path = tmp_path / f'{items[0].path.stem}.xml'
    path.write_text(path.read_text().replace('<difficult>0', '<difficult>1'))
    data = read_folder(tmp_path)
    crowds = [a['image_id'] for a in data.train.content['annotations'] if a['iscrowd']]
    assert crowds == [1] * len(items[0].objects)
    assert any('difficult' in line for line in data.changes.lines())


def test_a_file_of_voc_that_names_another_image_is_an_error(tmp_path, items):
    LAYOUTS['labelimg'](tmp_path, items)
    write_voc(items[0], tmp_path / f'{items[0].path.stem}.xml', items[1].path.name)
    (found,) = read_folder(tmp_path).findings
    assert items[0].path.name in found.detail and items[1].path.name in found.detail


def test_shapes_of_one_group_are_one_object(tmp_path, items):
    put(items[0], tmp_path / 'a.png')
    halves = [[[10, 10], [20, 10], [20, 20]], [[30, 30], [40, 30], [40, 44]]]
    shapes = [dict(label='bar', points=p, group_id=4, shape_type='polygon') for p in halves]
    circle = dict(label='post', points=[[20, 20], [20, 25]], group_id=None, shape_type='circle')
    content = dict(shapes=[*shapes, circle], imagePath='a.png', imageWidth=64, imageHeight=48)
    write_json(tmp_path / 'a.json', content)
    found = boxes(read_folder(tmp_path).train.content)
    assert found == [('a.png', 'bar', [10, 10, 30, 34]), ('a.png', 'post', [15, 15, 10, 10])]


def test_a_folder_without_annotations_says_what_is_read(tmp_path, items):
    put(items[0], tmp_path / 'a.png')
    with pytest.raises(FileNotFoundError, match='1 are images.*instances_train.json.*YOLO.*VOC'):
        read_folder(tmp_path)


def test_the_tool_writes_what_it_read_in_coco_format(tmp_path, items, capsys):
    LAYOUTS['yolo_roboflow'](tmp_path / 'data', items)
    run_command('check', [str(tmp_path / 'data'), '--write', str(tmp_path / 'out')])
    assert 'Read as YOLO' in capsys.readouterr().out
    again = read_folder(tmp_path / 'out/instances_train.json')
    assert boxes(again.train.content) == boxes(truth(items[:6]))


def odd_config(tmp_path, items, tiny_job):
    """A config whose annotations count from 0 and whose images are deeper than it says."""
    names = numbered(items)
    content = coco(items, names, 0, 0, 1)
    write_json(tmp_path / 'data/result.json', content)
    for item, name in zip(items, names):
        put(item, tmp_path / 'data/images/default' / name)
    prefix = dict(img=str(tmp_path / 'data/images'))
    path = str(tmp_path / 'data/result.json')
    changes = {'val_evaluator.ann_file': path, 'test_evaluator.ann_file': path}
    for loader in ('train', 'val', 'test'):
        changes[f'{loader}_dataloader.dataset.ann_file'] = path
        changes[f'{loader}_dataloader.dataset.data_prefix'] = prefix
    return tiny_job(**changes)


def test_a_config_is_pointed_to_repaired_files(tmp_path, items, tiny_job):
    config = load_config(odd_config(tmp_path, items, tiny_job))
    assert any(f.level == 'error' for f in check_config(config))
    before = (tmp_path / 'data/result.json').read_bytes()
    repairs = repair_config(config, tmp_path / 'work')
    assert not (tmp_path / 'work').exists()
    repairs.write()
    assert not [f for f in check_config(config) if f.level == 'error']
    dataset = config.test_dataloader.dataset
    assert dataset.ann_file == config.val_evaluator.ann_file == config.test_evaluator.ann_file
    assert boxes(json.loads(Path(dataset.ann_file).read_text())) == boxes(truth(items))
    assert (tmp_path / 'data/result.json').read_bytes() == before


def test_a_config_whose_files_are_right_stays_as_it_is(tmp_path, tiny_job):
    config = load_config(tiny_job())
    before = config.to_dict()
    assert not repair_config(config, tmp_path / 'work').contents
    assert config.to_dict() == before


def test_the_training_tool_repairs_and_trains(tmp_path, items, tiny_job):
    path = odd_config(tmp_path, items, tiny_job)
    options = ['train_cfg.max_epochs=1']
    done = run_forked('train', [path, '--work-dir', tmp_path / 'w', '--cfg-options', *options])
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'annotation ids' in done.stdout
    # The user's config still names the originals, which tools/test.py may not read.
    written = tmp_path / 'w' / path.name
    assert f'{written} names them' in done.stdout
    assert '0_result.json' in written.read_text()
    assert (tmp_path / 'w/annotations/0_result.json').is_file()
    assert (tmp_path / 'w/epoch_1.pth').is_file()


def test_the_demo_trains_on_a_folder_of_yolo(tmp_path, items):
    LAYOUTS['yolo_roboflow'](tmp_path / 'data', items)
    done = run_forked(
        'demo',
        [
            *('--data', tmp_path / 'data', '--work-dir', tmp_path / 'work', '--iters', '1'),
            *('--cfg-options', 'train_dataloader.batch_size=2'),
            *('model.backbone.pretrained=False', 'train_dataloader.num_workers=0'),
            'train_dataloader.persistent_workers=False',
        ],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / 'work/metrics.json').read_text())
    assert metrics['iterations'] == 1
    assert (tmp_path / 'work/instances_val.json').is_file()
