"""Faster R-CNN and Sparse R-CNN: they need full mmcv, and say so where it is missing."""

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import ddetr_plugin  # noqa: F401  before mmcv
from ddetr_plugin.cli import run_command
from ddetr_plugin.config_files import find_config
from ddetr_plugin.registry import MODELS

REPO = Path(__file__).resolve().parents[2]
FASTER = 'faster-rcnn_r50_fpn_8xb2-109e_coco.py'
SPARSE = 'sparse-rcnn_r50_fpn_300-proposals_8xb2-36e_coco.py'
COMPILED = find_spec('mmcv._ext').origin != 'ddetr_plugin stand-in'
needs_full_mmcv = pytest.mark.skipif(not COMPILED, reason='mmcv is installed without operators')
needs_mmcv_lite = pytest.mark.skipif(COMPILED, reason='mmcv has its compiled extension here')


def load(name):
    return Config.fromfile(find_config(name))


def build(model):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(copy.deepcopy(model))


def small(name) -> dict:
    """The model of a config, narrow, for three classes, nothing loaded."""
    model = load(name).model
    model.backbone.update(base_channels=8, init_cfg=None)
    model.neck.update(in_channels=[32, 64, 128, 256], out_channels=16)
    model.roi_head.bbox_roi_extractor.out_channels = 16
    if name == FASTER:
        model.rpn_head.update(in_channels=16, feat_channels=16)
        model.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=3)
    else:
        model.rpn_head.update(num_proposals=10, proposal_feature_channel=16)
        model.roi_head.proposal_feature_channel = 16
        model.test_cfg.rcnn.max_per_img = 10
        for head in model.roi_head.bbox_head:
            head.update(num_classes=3, in_channels=16, num_heads=2, feedforward_channels=32)
            head.dynamic_conv_cfg.update(in_channels=16, feat_channels=8, out_channels=16)
    return model.to_dict()


@pytest.fixture(params=[FASTER, SPARSE])
def job(request, tiny_job):
    """A config file of a small model on tiny pictures, one epoch."""
    model = dict(_delete_=True, **small(request.param))
    return tiny_job(model=model, train_cfg=dict(max_epochs=1))


@pytest.mark.parametrize(('name', 'millions'), [(FASTER, 42), (SPARSE, 106)])
def test_the_models_have_the_published_size(name, millions):
    with torch.device('meta'):
        model = build(load(name).model)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(count / 1e6) == millions


def test_the_schedule_is_the_ninefold_one_of_detectron2():
    config = load(FASTER)
    pictures, steps, batch = 118_287, 810_000, 16
    epochs = steps * batch / pictures
    assert config.train_cfg.max_epochs == int(epochs)
    warm_up, decay = config.param_scheduler
    assert (warm_up.by_epoch, warm_up.end) == (False, 1000)
    assert decay.end == config.train_cfg.max_epochs
    for milestone, before_end in zip(decay.milestones, (60_000, 20_000)):
        assert abs(milestone - (steps - before_end) * batch / pictures) < 0.5
    assert config.train_dataloader.batch_size * 8 == config.auto_scale_lr.base_batch_size == batch


def test_only_giou_trains_the_boxes_of_faster_rcnn():
    model = load(FASTER).model
    for head, weight in ((model.rpn_head, 1.0), (model.roi_head.bbox_head, 20.0)):
        assert head.reg_decoded_bbox
        assert head.loss_bbox.to_dict() == dict(type='GIoULoss', loss_weight=weight)


@needs_mmcv_lite
@pytest.mark.parametrize(
    ('job', 'name'),
    [(FASTER, 'train'), (FASTER, 'test'), (FASTER, 'predict'), (SPARSE, 'train')],
    indirect=['job'],
)
def test_without_operators_every_tool_says_which_are_missing_and_what_to_install(
    name, job, tmp_path, capsys
):
    checkpoint = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=build(Config.fromfile(job).model).state_dict()), checkpoint)
    if name == 'predict':
        picture = next((REPO / 'docs').glob('*.png'))
        arguments = [str(picture), str(job), str(checkpoint), '--out', str(tmp_path)]
        with pytest.raises(SystemExit) as stop:
            run_command(name, arguments)
        message = stop.value.code
    else:
        arguments = [str(job)] + ([str(checkpoint)] if name == 'test' else [])
        with pytest.raises(SystemExit) as stop:
            run_command(name, [*arguments, '--work-dir', str(tmp_path / 'out')])
        assert stop.value.code == 2
        message = capsys.readouterr().err
    assert "needs mmcv's compiled operators (RoIAlign)" in message
    assert 'pip uninstall mmcv-lite; pip install mmcv==2.1.0' in message
    assert 'Traceback' not in message


@needs_mmcv_lite
def test_an_operator_that_is_only_called_is_named_when_it_is(tiny_job, tmp_path, capsys):
    """RetinaNet trains without compiled operators on a CPU, and its validation wants NMS."""
    source = load(FASTER)
    model = dict(
        _delete_=True,
        type='RetinaNet',
        data_preprocessor=source.model.data_preprocessor.to_dict(),
        backbone=dict(type='ResNet', depth=18, base_channels=8, out_indices=(2, 3)),
        neck=dict(type='FPN', in_channels=[32, 64], out_channels=16, num_outs=2),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=3,
            in_channels=16,
            stacked_convs=1,
            feat_channels=16,
            anchor_generator=dict(
                type='AnchorGenerator', scales=[1.0], ratios=[1.0], strides=[16, 32]
            ),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(
            nms_pre=100,
            score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=10,
            min_bbox_size=0,
        ),
    )
    path = tiny_job(model=model, train_cfg=dict(max_epochs=1))
    with pytest.raises(SystemExit) as stop:
        run_command('train', [str(path), '--work-dir', str(tmp_path / 'out')])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert 'mmcv.ops needs the compiled op "nms"' in message
    assert 'pip uninstall mmcv-lite; pip install mmcv==2.1.0' in message


@needs_full_mmcv
def test_with_operators_they_train_and_predict(job, tmp_path, capsys):
    out = tmp_path / 'out'
    run_command('train', [str(job), '--work-dir', str(out)])
    weights = torch.load(out / 'epoch_1.pth')['state_dict']
    assert all(weight.isfinite().all() for weight in weights.values())
    capsys.readouterr()
    arguments = [str(job), str(out / 'epoch_1.pth'), '--work-dir', str(tmp_path / 'test')]
    run_command('test', arguments)
    assert 'Average Precision' in capsys.readouterr().out
