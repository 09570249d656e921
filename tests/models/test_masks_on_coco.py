"""Masks of real pictures: crowds are no targets, mask AP grows, the tools evaluate it."""

import contextlib
import copy
import io
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from builders import initialise
from mask_cases import mask_head_config, masks_config
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from ddetr_plugin.config_files import find_config
from ddetr_plugin.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / 'shared' / 'data' / 'coco_sample'
CONFIG = find_config('deformable-detr-masks_r50_16xb2-50e_coco')
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason='../shared/data/coco_sample is not there; it has the polygons'
)


def annotations():
    return json.loads((DATA / 'annotations' / 'instances_val.json').read_text())


def pictures_of(content, tmp_path, ids):
    """A COCO file of these pictures and of the classes on them; returns its path and the names."""
    boxes = [a for a in content['annotations'] if a['image_id'] in ids]
    seen = {a['category_id'] for a in boxes}
    categories = [c for c in content['categories'] if c['id'] in seen]
    path = tmp_path / 'annotations.json'
    images = [image for image in content['images'] if image['id'] in ids]
    path.write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return path, tuple(c['name'] for c in categories)


def load(file, names, scale):
    """Samples of a COCO file, loaded with masks as the config of COCO loads them."""
    pipeline = Config.fromfile(CONFIG).train_dataloader.dataset.pipeline
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    steps = [
        *pipeline[:2],
        dict(type='Resize', scale=scale, keep_ratio=True),
        dict(type='PackDetInputs', meta_keys=meta_keys),
    ]
    config = dict(
        type='CocoDataset',
        ann_file=str(file),
        data_prefix=dict(img=str(DATA / 'images')),
        metainfo=dict(classes=names),
        pipeline=steps,
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config)
        return [dataset[i] for i in range(len(dataset))]


@needs_data
def test_crowds_are_no_targets(tmp_path):
    content = annotations()
    crowds = Counter(a['image_id'] for a in content['annotations'] if a['iscrowd'])
    picture = next(iter(crowds))
    file, names = pictures_of(content, tmp_path, {picture})
    (sample,) = load(file, names, scale=(160, 128))
    instances = sample['data_samples'].gt_instances
    boxes = [a for a in content['annotations'] if a['image_id'] == picture]
    assert len(instances) == len(instances.masks) == len(boxes) - crowds[picture]
    assert len(sample['data_samples'].ignored_instances) == crowds[picture]


def evaluate(model, batch, file, names):
    """mmdet's COCO metrics of boxes and masks, by pycocotools."""
    from mmdet.evaluation import CocoMetric  # after ddetr_plugin

    model.eval()
    metric = CocoMetric(ann_file=str(file), metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=names)
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        samples = model.test_step(copy.deepcopy(batch))
        metric.process({}, [sample.to_dict() for sample in samples])
        return metric.evaluate(len(samples))


@needs_data
def test_mask_ap_grows_on_two_real_pictures(tmp_path):
    torch.manual_seed(0)
    # An oven under a microwave; a car in front of a motorcycle.
    file, names = pictures_of(annotations(), tmp_path, {802, 165518})
    samples = load(file, names, scale=(128, 96))
    batch = dict(
        inputs=[sample['inputs'] for sample in samples],
        data_samples=[sample['data_samples'] for sample in samples],
    )
    config = masks_config(
        mask_head=mask_head_config(in_channels=[16, 32, 64]),
        backbone=dict(
            base_channels=16, norm_cfg=dict(requires_grad=True), norm_eval=False, frozen_stages=-1
        ),
        neck=dict(in_channels=[32, 64, 128]),
        bbox_head=dict(num_classes=len(names)),
    )
    model = MODELS.build(config)
    initialise(model)
    before = evaluate(model, batch, file, names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    focal = []
    model.train()
    for _ in range(200):
        losses = model(**model.data_preprocessor(copy.deepcopy(batch), True), mode='loss')
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        focal.append(losses['loss_mask'].item())
    after = evaluate(model, batch, file, names)
    assert before['coco/segm_mAP'] < 0.02
    assert after['coco/segm_mAP'] > 0.15
    assert focal[-1] < 0.4 * focal[0]
