"""Every tool's export is read as it was meant, checked, trained on and evaluated."""

import hashlib
import json

import check_dataset
import pytest
from layouts import CLASSES, LAYOUTS, read_items
from mmengine.config import Config
from mmengine.logging import MMLogger
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ddetr_plugin.data_checks import has_errors
from ddetr_plugin.engine import launch
from ddetr_plugin.intake import read_folder


def digests(folder):
    """Of all files."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def boxes_by_image(split):
    """{digest of an image: its boxes}, whatever it is called."""
    names = {c['id']: c['name'] for c in split.content['categories']}
    found = {}
    for image in split.content['images']:
        path = split.image_folder / image['file_name']
        found[hashlib.sha256(path.read_bytes()).hexdigest()] = sorted(
            (names[a['category_id']], [round(value, 3) for value in a['bbox']])
            for a in split.content['annotations']
            if a['image_id'] == image['id']
        )
    return found


def boxes_of(items):
    return {
        hashlib.sha256(item.path.read_bytes()).hexdigest(): sorted(item.objects) for item in items
    }


@pytest.fixture(scope='module')
def folders(tiny_coco, tmp_path_factory):
    """For every layout the folder, and its splits."""
    root, items = tmp_path_factory.mktemp('layouts'), read_items(tiny_coco)
    return {name: (root / name, make(root / name, items)) for name, make in LAYOUTS.items()}


@pytest.mark.parametrize('name', LAYOUTS)
def test_boxes_and_images_are_those_that_were_annotated(folders, name, tmp_path):
    folder, splits = folders[name]
    before = digests(folder)
    data = read_folder(folder)
    assert boxes_by_image(data.train) == boxes_of(splits['train'])
    assert (data.val is None) == ('val' not in splits)
    if data.val is not None:
        assert boxes_by_image(data.val) == boxes_of(splits['val'])
    for split in filter(None, (data.train, data.val)):
        assert sorted(split.classes) == sorted(CLASSES) and split.classes == data.train.classes
    assert not has_errors(check_dataset.check_data(data))
    data.place(tmp_path).write(tmp_path)
    assert digests(folder) == before


def perfect_ap(ann_file):
    """AP of detections that are the annotations."""
    truth = COCO(str(ann_file))
    fields = ('image_id', 'category_id', 'bbox')
    found = [{f: a[f] for f in fields} | dict(score=1.0) for a in truth.dataset['annotations']]
    evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize('name', LAYOUTS)
def test_what_is_written_is_trained_on_and_evaluated(folders, name, tmp_path, tiny_job):
    data = read_folder(folders[name][0])
    data = (data if data.val else data.hold_out()).place(tmp_path)
    data.write(tmp_path)
    assert perfect_ap(data.val.ann_file) == pytest.approx(1)
    config = Config.fromfile(tiny_job())
    for loader, split in (('train', data.train), ('val', data.val), ('test', data.val)):
        config[f'{loader}_dataloader'].dataset.update(
            ann_file=str(split.ann_file),
            data_prefix=dict(img=str(split.image_folder)),
            metainfo=dict(classes=data.train.classes),
        )
    config.val_evaluator.ann_file = config.test_evaluator.ann_file = str(data.val.ann_file)
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    config.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    config.param_scheduler = []
    config.launcher = 'none'
    path = tmp_path / 'config.py'
    config.dump(path)
    runner = launch.build_runner(launch.load_config(path, work_dir=tmp_path / 'work'))
    runner.train()
    MMLogger.get_current_instance()
    metrics = [json.loads(line) for line in next(tmp_path.rglob('scalars.json')).open()]
    assert any('coco/bbox_mAP' in line for line in metrics)
