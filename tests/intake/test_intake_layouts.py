"""Every tool's export is read as it was meant, checked, trained on and evaluated."""

import hashlib

import pytest
import torch
from builders import tiny_config
from layouts import CLASSES, LAYOUTS, read_items
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.dataset import pseudo_collate
from mmengine.optim import OptimWrapper
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ddetr_plugin.data_checks import has_errors
from ddetr_plugin.intake import read_folder
from ddetr_plugin.intake.checks import check_data
from ddetr_plugin.registry import MODELS


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
    assert not has_errors(check_data(data))
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


@pytest.fixture(scope='module')
def model():
    """A tiny detector, and what trains it."""
    torch.manual_seed(0)
    detector = MODELS.build(
        tiny_config(
            embed_dims=16,
            backbone=dict(base_channels=8),
            neck=dict(in_channels=[16, 32, 64]),
            bbox_head=dict(num_classes=3),
        )
    )
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-4)
    return detector, OptimWrapper(optimizer)


def load(split, classes, test_mode):
    """mmdet's dataset of a split."""
    return CocoDataset(
        ann_file=str(split.ann_file),
        data_prefix=dict(img=str(split.image_folder)),
        metainfo=dict(classes=classes),
        test_mode=test_mode,
        # Else it collects garbage, which takes longer than all the rest.
        serialize_data=False,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True),
            dict(type='mmdet.Resize', scale=(64, 48), keep_ratio=True),
            dict(
                type='mmdet.PackDetInputs',
                meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            ),
        ],
    )


@pytest.mark.parametrize('name', LAYOUTS)
def test_what_is_written_is_trained_on_and_evaluated(folders, name, tmp_path, model):
    data = read_folder(folders[name][0])
    data = (data if data.val else data.hold_out()).place(tmp_path)
    data.write(tmp_path)
    detector, optimizer = model
    classes = tuple(data.train.classes)
    learned = load(data.train, classes, test_mode=False)
    assert len(learned) == len(data.train.content['images'])
    detector.train()
    for step in range(2):
        losses = detector.train_step(pseudo_collate([learned[step], learned[-1]]), optimizer)
        assert all(loss.isfinite() for loss in losses.values())
    scored = load(data.val, classes, test_mode=True)
    metric = CocoMetric(ann_file=str(data.val.ann_file), metric='bbox')
    metric.dataset_meta = scored.metainfo
    detector.eval()
    with torch.no_grad():
        for sample in scored:
            found = detector.test_step(pseudo_collate([sample]))
            metric.process({}, [one.to_dict() for one in found])
    # -1 would say that there is nothing to be found.
    assert 0 <= metric.evaluate(len(scored))['coco/bbox_mAP'] <= 1
    assert perfect_ap(data.val.ann_file) == pytest.approx(1)
