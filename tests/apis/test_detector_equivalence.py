"""Detector, the Runner's test and mmdet's own inference find the same on the same images."""

import pickle

import ddetr_plugin  # noqa: F401  before mmdet

# isort: split
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ddetr_plugin.apis import Detector
from ddetr_plugin.apis.configs import list_configs
from ddetr_plugin.checkpoints import export
from ddetr_plugin.cli import run_command
from ddetr_plugin.registry import MODELS


def write_checkpoint(path, config, classes):
    """Random weights with boxes that depend on the image, as a Runner would leave them."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    state = model.state_dict()
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=classes))), path)
    return state


@pytest.fixture
def job(tiny_job, tiny_coco, tmp_path):
    """Config, checkpoint and images of sizes that differ from the network's."""
    path = tiny_job(
        **{
            'test_dataloader.batch_size': 1,
            'test_dataloader.dataset.pipeline.2.scale': (96, 64),
            'val_evaluator.format_only': False,
        }
    )
    config = Config.fromfile(path)
    state = write_checkpoint(tmp_path / 'weights.pth', config, tiny_coco.classes)
    return path, tmp_path / 'weights.pth', state


def results_of_test(path, checkpoint, tmp_path, name='results'):
    out = tmp_path / f'{name}.pkl'
    arguments = [path, checkpoint, '--out', out, '--work-dir', tmp_path / name]
    run_command('test', [*map(str, arguments)])
    return [sample['pred_instances'] for sample in pickle.loads(out.read_bytes())]


def assert_same(found, instances):
    assert np.array_equal(found.boxes, np.asarray(instances['bboxes']))
    assert np.array_equal(found.scores, np.asarray(instances['scores']))
    assert np.array_equal(found.labels, np.asarray(instances['labels']))


def test_all_ways_give_the_same_detections(job, tiny_coco, tmp_path):
    path, checkpoint, _ = job
    images = sorted(tiny_coco.images.iterdir())
    found = list(Detector(path, checkpoint, 'cpu')(images, score_thr=0))
    assert len(found) == 8 and all(len(one) == 36 for one in found)
    boxes = np.stack([one.boxes for one in found])
    assert np.ptp(boxes, axis=0).max() > 0.01, 'detections must depend on the image'

    for one, instances in zip(found, results_of_test(path, checkpoint, tmp_path)):
        assert_same(one, instances)
        assert torch.equal(torch.from_numpy(one.queries), torch.as_tensor(instances['queries']))
    model = init_detector(str(path), str(checkpoint), device='cpu')
    for one, image in zip(found, images):
        assert_same(one, inference_detector(model, str(image)).pred_instances)
    inferencer = DetInferencer(str(path), str(checkpoint), device='cpu', show_progress=False)
    predictions = inferencer([*map(str, images)], no_save_vis=True)['predictions']
    for one, prediction in zip(found, predictions):
        assert np.array_equal(one.boxes, np.array(prediction['bboxes'], np.float32))
        assert np.array_equal(one.scores, np.array(prediction['scores'], np.float32))
        assert one.labels.tolist() == prediction['labels']


@pytest.mark.parametrize('dialect', ['mmdet', 'transformers', 'official'])
def test_weights_of_others_are_found_to_be_the_same_classes(job, tiny_coco, tmp_path, dialect):
    path, checkpoint, state = job
    other = tmp_path / 'other.pth'
    exported = export(state, dialect)
    if dialect == 'mmdet':  # Its rows are in another order, which its classes tell.
        order = [2, 0, 1]
        for name in exported:
            if '.cls_branches.' in name:
                exported[name] = exported[name][order]
        classes = tuple(tiny_coco.classes[i] for i in order)
        torch.save(dict(state_dict=exported, meta=dict(dataset_meta=dict(classes=classes))), other)
    else:
        torch.save(dict(model=exported), other)
    images = sorted(tiny_coco.images.iterdir())[:2]
    ours = list(Detector(path, checkpoint, 'cpu')(images, score_thr=0))
    theirs = list(Detector(path, other, 'cpu')(images, score_thr=0))
    for a, b in zip(ours, theirs):
        assert a.names == b.names
        assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores)
    for one, instances in zip(theirs, results_of_test(path, other, tmp_path, 'other')):
        assert_same(one, instances)


def test_a_config_that_was_given_stays_as_it_is(job, tiny_coco):
    path, checkpoint, _ = job
    config = Config.fromfile(path)
    before = config.pretty_text
    detector = Detector(config, checkpoint, 'cpu')
    assert config.pretty_text == before
    assert detector.classes == tiny_coco.classes and detector.category_ids == [1, 2, 3]
    assert detector.device.type == 'cpu' and not detector.model.training
    assert DefaultScope.get_current_instance() is None or (
        DefaultScope.get_current_instance().scope_name != 'overwritten'
    )


def test_a_config_of_this_package_is_found_by_its_name(tmp_path):
    name = next(c.name for c in list_configs() if c.name.startswith('deformable-detr_r50'))
    with pytest.raises(FileNotFoundError, match=r'checkpoint .*gone\.pth does not exist'):
        Detector(name, tmp_path / 'gone.pth')
    with pytest.raises(FileNotFoundError, match='config deformable-detr_r51 does not exist'):
        Detector('deformable-detr_r51', tmp_path / 'gone.pth')


def test_a_device_that_is_none_is_refused(job):
    path, checkpoint, _ = job
    with pytest.raises(ValueError, match='the device tpu9 cannot be used'):
        Detector(path, checkpoint, 'tpu9')
