"""The quick look at a config's data before a training, its report, and what is told apart."""

import json
import shutil

import pytest
from mmcv.transforms import RandomChoiceResize
from mmengine.config import Config
from PIL import Image

from ddetr_plugin.cli import run_command
from ddetr_plugin.data_checks import (
    Split,
    check_annotations,
    check_class_names,
    check_config,
    check_pictures,
    config_scales,
    find_missing,
    read_annotations,
)
from ddetr_plugin.datasets.image_files import missing_end


@pytest.fixture
def content(tiny_coco):
    return json.loads(tiny_coco.annotations.read_text())


def kinds(findings, level=None):
    return [f.kind for f in findings if level in (None, f.level)]


@pytest.fixture
def job(tiny_job, tiny_coco, tmp_path):
    """The config of `tiny_job`; the function writes one whose training data is changed."""

    def write(change=lambda content: None, **changes):
        content = json.loads(tiny_coco.annotations.read_text())
        change(content)
        file = tmp_path / 'train.json'
        file.write_text(json.dumps(content))
        changes.setdefault('train_dataloader.dataset.ann_file', str(file))
        return tiny_job(**changes)

    return write


@pytest.mark.parametrize(
    ('change', 'part', 'entry_id', 'level', 'kind'),
    [
        (lambda c: c['annotations'][2].update(bbox=[9, 9, -4, 5]), 'annotation', 3, 'warning',
         'boxes without area'),
        (lambda c: c['annotations'][2].update(bbox=[70, 9, 4, 5]), 'annotation', 3, 'warning',
         'boxes outside their picture'),
        (lambda c: c['annotations'][2].update(bbox=[9, 9, 0.5, 5]), 'annotation', 3, 'warning',
         'boxes thinner than a pixel'),
        (lambda c: c['annotations'][2].update(area=-1), 'annotation', 3, 'warning',
         'annotations whose area is not positive'),
        (lambda c: c['annotations'][2].update(area=float('nan')), 'annotation', 3, 'error',
         'areas that are not finite'),
        (lambda c: c['annotations'][2].update(area=float('inf')), 'annotation', 3, 'error',
         'areas that are not finite'),
        (lambda c: c['images'][1].update(width=0), 'image', 2, 'error', 'pictures without a size'),
        (lambda c: c['images'][1].update(height=float('nan')), 'image', 2, 'error',
         'pictures without a size'),
        (lambda c: c['images'].append(dict(c['images'][0], id=9, file_name='x.png')), 'image', 9,
         'note', 'pictures without annotations'),
        (lambda c: [a.update(iscrowd=1) for a in c['annotations'] if a['image_id'] == 4], 'image',
         4, 'warning', 'pictures with regions of crowds alone'),
        (lambda c: (c['categories'][2].update(id=7),
                    [a.update(category_id=7) for a in c['annotations'] if a['category_id'] == 3]),
         'category', 2, 'note', 'category ids with gaps'),
        (lambda c: c['annotations'][2].update(category_id=99), 'annotation', 3, 'error',
         'annotations of unknown classes'),
        (lambda c: c['annotations'][2].update(id=5), 'annotation', 5, 'error',
         'annotations without an id of their own'),
    ],
)  # fmt: skip
def test_a_finding_names_file_id_and_remedy(content, tmp_path, change, part, entry_id, level, kind):
    change(content)
    findings = check_annotations(tmp_path / 'a.json', content, training=True)
    (found,) = [f for f in findings if f.kind == kind]
    assert (found.level, found.kind, found.part, found.id) == (level, kind, part, entry_id)
    assert found.file == str(tmp_path / 'a.json') and str(entry_id) in found.where
    assert found.remedy


def test_corners_far_from_the_border_are_suspected_even_if_no_box_leaves_its_picture(tmp_path):
    image = dict(id=1, file_name='x.png', width=1000, height=1000)
    boxes = [[10 + k, 20 + k, 30 + 2 * k, 40 + 2 * k] for k in range(40)]

    def suspected(boxes):
        annotations = [
            dict(id=k, image_id=1, category_id=1, bbox=box, area=9, iscrowd=0)
            for k, box in enumerate(boxes, start=1)
        ]
        content = dict(images=[image], annotations=annotations, categories=[dict(id=1, name='x')])
        return kinds(check_annotations(tmp_path, content, True), 'warning')

    assert suspected(boxes) == ['boxes look like [x1, y1, x2, y2]']
    assert suspected([[x, y, x2 - x, y2 - y] for x, y, x2, y2 in boxes]) == []


def test_polygons_are_left_out_of_a_quick_reading_and_nothing_else(content, tmp_path):
    file = tmp_path / 'a.json'
    content['images'][0]['file_name'] = 'a "segmentation": [1, 2] b.png'
    for annotation in content['annotations'][:3]:
        annotation['segmentation'] = [[1.5, 2e3, 3, 4, 5, 6], [7, 8, 9, 1, 2, 3]]
    content['annotations'][3]['segmentation'] = dict(counts=[1, 2], size=[3, 4])
    # First, in the middle and last among the keys.
    first = content['annotations'][0]
    content['annotations'][0] = dict(segmentation=first.pop('segmentation'), **first)
    file.write_text(json.dumps(content))
    whole, quick = read_annotations(file), read_annotations(file, polygons=False)
    assert whole == content
    for annotation in whole['annotations'][:3]:
        annotation['segmentation'] = []
    assert quick == whole


@pytest.mark.parametrize('extension', ['jpg', 'png'])
def test_what_a_training_would_call_truncated_the_check_does_too(tmp_path, extension):
    picture = Image.effect_noise((60, 40), 80).convert('RGB')
    path = tmp_path / f'1.{extension}'
    picture.save(path)
    image = dict(id=1, file_name=path.name, width=60, height=40)
    assert check_pictures(tmp_path, [image], ()) == []
    path.write_bytes(path.read_bytes()[:-2])
    (found,) = check_pictures(tmp_path, [image], ())
    assert found.kind == 'broken pictures' and found.detail == missing_end(path)


def test_missing_pictures_are_found_in_folders_below_and_in_long_listings(tmp_path):
    names = [f'{"ab"[k % 2]}/{k}.png' for k in range(2600)]
    for name in names[:-2]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = [dict(id=k, file_name=name) for k, name in enumerate(names)]
    assert [f.id for f in find_missing(tmp_path, images)] == [2598, 2599]
    assert [f.id for f in find_missing(tmp_path, images[-10:])] == [2598, 2599]
    (gone,) = find_missing(tmp_path / 'nowhere', images)
    assert '2600 pictures' in gone.detail


@pytest.mark.parametrize(
    ('classes', 'level', 'words'),
    [
        (('square', 'bar', 'post'), None, ''),
        (('bar', 'square', 'post'), 'error', "label 0 is 'bar' in the config, but 'square'"),
        (('dog', 'cat', 'cow'), 'error', "'dog', 'cat', 'cow', which the file does not have"),
        (('wheel', 'square', 'bar'), 'error', "label 0 is 'wheel' in the config, but 'square'"),
        (('square', 'bar', 'post', 'wheel'), 'warning', "the file lacks 'wheel'"),
        (('square', 'bar'), 'warning', 'post'),
    ],
)
def test_class_names_of_the_config_are_compared_as_mmdet_numbers_them(
    content, tmp_path, classes, level, words
):
    from mmdet.datasets import CocoDataset

    file = tmp_path / 'a.json'
    file.write_text(json.dumps(content))
    findings = check_class_names(Split('train', file, tmp_path, content), classes)
    assert [f.level for f in findings] == ([level] if level else [])
    assert not findings or words in findings[0].where
    # The premise, in mmdet: its labels mean what the config says only where no error is found.
    dataset = CocoDataset(
        ann_file=str(file),
        metainfo=dict(classes=classes),
        data_prefix=dict(img='x'),
        lazy_init=True,
    )
    dataset.load_data_list()
    names = {c['id']: c['name'] for c in content['categories']}
    right = all(classes[label] == names[i] for i, label in dataset.cat2label.items())
    assert (right and bool(dataset.cat2label)) == (level != 'error')


def test_a_good_config_has_no_findings_and_is_not_changed(job):
    config = Config.fromfile(job())
    before = config.pretty_text
    assert not kinds(check_config(config), 'error')
    assert config.pretty_text == before


@pytest.mark.parametrize(
    ('change', 'changes', 'kind'),
    [
        (lambda c: c['annotations'][0].update(category_id=9), {}, 'annotations of unknown classes'),
        (lambda c: c['images'][0].update(file_name='gone.png'), {}, 'missing pictures'),
        (lambda c: c.pop('categories'), {}, 'annotation files that cannot be read'),
        (lambda c: c['categories'].reverse(), {}, 'classes of the splits differ'),
        (lambda c: None, {'train_dataloader.dataset.ann_file': 'no.json'}, 'missing annotation'),
        (lambda c: None, {'train_dataloader.dataset.data_prefix.img': 'no/'}, 'missing folders'),
        (lambda c: None, {'model.bbox_head.num_classes': 2}, 'another number of classes'),
        (lambda c: None, {'train_dataloader.dataset.metainfo.classes': ('bar', 'square', 'post')},
         'classes of the config and'),
    ],
)  # fmt: skip
def test_training_stops_at_once_on_data_that_would_spoil_it(
    job, tmp_path, capsys, change, changes, kind
):
    with pytest.raises(SystemExit) as stopped:
        run_command('train', [str(job(change, **changes)), '--work-dir', str(tmp_path / 'out')])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert f'error: {kind}' in printed.out and 'what to do:' in printed.out
    assert '--skip-data-check' in printed.err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('changed', 'seen'),
    [
        (lambda data: dict(data, backend_args=dict(backend='local')), True),
        (lambda data: dict(data, backend_args=dict(backend='petrel')), False),
        (lambda data: dict(data, type='VOCDataset'), False),
        (lambda data: dict(type='RepeatDataset', times=2, dataset=dict(data, type='VOCDataset')),
         False),
    ],
    ids=['local', 'elsewhere', 'another format', 'wrapped'],
)  # fmt: skip
def test_what_is_not_looked_into_is_named(job, tmp_path, capsys, changed, seen):
    config = Config.fromfile(job(lambda c: c['images'][0].update(file_name='gone.png')))
    config.train_dataloader.dataset = changed(config.train_dataloader.dataset.to_dict())
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    found = {(f.level, f.kind) for f in check_config(config)}
    assert (('error', 'missing pictures') in found) == seen
    assert (('note', 'data sets that are not looked into') in found) == (not seen)
    config.dump(tmp_path / 'changed.py')
    with pytest.raises(SystemExit) as stopped:
        run_command('check', ['--config', str(tmp_path / 'changed.py')])
    assert stopped.value.code == (1 if seen else 2)
    assert 'nothing stands in the way' not in capsys.readouterr().out


def test_the_check_can_be_skipped(job, tmp_path):
    config = job(
        lambda c: c['annotations'][0].update(category_id=9),
        train_cfg=dict(max_epochs=1, val_begin=2),
    )
    run_command('train', [str(config), '--work-dir', str(tmp_path / 'out'), '--skip-data-check'])
    assert (tmp_path / 'out' / 'epoch_1.pth').is_file()


@pytest.mark.parametrize(
    ('change', 'changes'),
    [
        (lambda c: [a.update(id=a['id'] - 1) for a in c['annotations']], {}),
        (lambda c: [a.pop('iscrowd') for a in c['annotations']], {}),
        (lambda c: [a.update({k: float(a[k]) for k in ('id', 'image_id', 'category_id')})
                    for a in c['annotations']], {}),
        (lambda c: c['categories'].insert(1, dict(id=9, name='wheel')), {}),
        (lambda c: c['categories'].append(dict(id=9, name='wheel')), {}),
        (lambda c: None, {'train_dataloader.dataset.metainfo.classes': 'names.txt'}),
    ],
    ids=['from zero', 'no iscrowd', 'floats', 'more between', 'more', 'names in a file'],
)  # fmt: skip
def test_a_training_that_mmdet_understands_is_not_refused(
    job, tiny_coco, tmp_path, monkeypatch, change, changes
):
    from mmdet.registry import DATASETS

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'names.txt').write_text('\n'.join(tiny_coco.classes))
    config = Config.fromfile(job(change, **changes))
    assert kinds(check_config(config), 'error') == []
    # The premise: the same boxes and labels as of the untouched file.
    spoilt = DATASETS.build(config.train_dataloader.dataset)
    whole = DATASETS.build(Config.fromfile(job()).val_dataloader.dataset)
    instances = [[d['instances'] for d in data.load_data_list()] for data in (spoilt, whole)]
    assert instances[0] == instances[1]


def test_what_only_a_validation_needs_is_an_error_there(content, tmp_path):
    for annotation in content['annotations']:
        del annotation['iscrowd']
    content['annotations'][0]['id'] = 0
    wanted = {
        'annotations without area or iscrowd',
        'annotation ids that are not positive integers',
    }
    for scored, level in ((True, 'error'), (False, 'warning')):
        found = check_annotations(tmp_path / 'a.json', content, training=True, scored=scored)
        assert {f.kind for f in found if f.level == level} == wanted


def test_scales_of_every_kind_of_resize_are_found():
    steps = [
        dict(type='Resize', scale_factor=0.5, keep_ratio=True),
        dict(type='Resize', scale=(1333, 800), keep_ratio=True),
        dict(type=RandomChoiceResize, scales=[(640, 480)], keep_ratio=True),
        dict(type='Resize', scale=(99, 99), keep_ratio=False),
    ]
    config = dict(train_dataloader=dict(dataset=dict(pipeline=steps)))
    assert config_scales(config) == [(1333, 800), (640, 480)]


def test_wrapped_datasets_are_checked_and_others_left_alone(job):
    config = Config.fromfile(job(lambda c: c['annotations'][0].update(category_id=9)))
    inner = config.train_dataloader.dataset
    wrong = 'annotations of unknown classes'
    for wrapped in (
        dict(type='RepeatDataset', times=2, dataset=inner),
        dict(type='ConcatDataset', datasets=[config.val_dataloader.dataset, inner]),
    ):
        config.train_dataloader.dataset = wrapped
        assert wrong in kinds(check_config(config))
    for other in (
        dict(type='LVISV1Dataset'),
        dict(ann_file='s3://x.json'),
        dict(backend_args=dict(backend='petrel')),
    ):
        config.train_dataloader.dataset = dict(inner, **other)
        assert wrong not in kinds(check_config(config))


def test_a_report_lists_every_finding_and_the_exit_status_says_which_kind(
    job, tiny_coco, tmp_path, capsys
):
    report = tmp_path / 'out' / 'report.json'
    shutil.copytree(tiny_coco.images, tmp_path / 'images')
    Image.new('RGB', (64, 48)).save(tmp_path / 'images' / '02.png', format='JPEG')
    (tmp_path / 'images' / '03.png').write_bytes(b'\x89PNG nothing')

    def status(config):
        try:
            run_command('check', ['--config', str(config), '--json', str(report)])
        except SystemExit as stopped:
            return stopped.code
        return 0

    assert status(job()) == 0
    images = dict(img=str(tmp_path / 'images'))
    changes = {f'{k}_dataloader.dataset.data_prefix': images for k in ('train', 'val')}
    assert status(job(**changes)) == 1
    content = json.loads(report.read_text())
    assert content['counts']['error'] == 1
    found = {(f['level'], f['kind'], f['id']) for f in content['findings']}
    assert ('error', 'broken pictures', 3) in found
    assert ('warning', 'pictures of another format than their name says', 2) in found
    assert all(f['file'] and f['remedy'] for f in content['findings'])
    assert status(tmp_path / 'no.py') == 2
    with pytest.raises(SystemExit):
        run_command('check', [])
    assert 'name a folder, a config' in capsys.readouterr().err
