"""The models that are compared, ours and mmdet's: sizes, variants, equal weights, equal results."""

import copy
import logging
from typing import NamedTuple

import torch
from mmengine.config import Config

from benchmarks.processes import ROOT
from ddetr_plugin.checkpoints import export
from ddetr_plugin.checkpoints.parity.other_models import mmdet_model
from ddetr_plugin.registry import MODELS

BASE = ROOT / 'configs' / '_base_' / 'models' / 'deformable_detr_r50.py'
VARIANTS = {
    'base': {},
    'refine': dict(decoder=dict(refine=True), bbox_head=dict(share_branches=False)),
    'two-stage': dict(
        query_head=dict(
            _delete_=True,
            type='ddetr_plugin.TwoStageHead',
            num_queries=300,
            num_classes=80,
            embed_dims=256,
        ),
        decoder=dict(refine=True),
        bbox_head=dict(share_branches=False, initial_size_logit=0.0),
    ),
}
RESNET18 = dict(
    backbone=dict(depth=18),
    neck=dict(in_channels=[128, 256, 512]),
    encoder=dict(num_layers=2),
    decoder=dict(num_layers=3),
    bbox_head=dict(num_layers=3),
)
LITE0 = dict(
    backbone=dict(
        _delete_=True,
        type='ddetr_plugin.EfficientNetLite0',
        out_indices=(3, 4, 5),
        frozen_stages=3,
        norm_eval=True,
        pretrained=False,
    ),
    neck=dict(in_channels=[40, 112, 320]),
    encoder=dict(num_layers=2),
    decoder=dict(num_layers=3),
    bbox_head=dict(num_layers=3),
)


class Size(NamedTuple):
    """A model and the images of one step."""

    changes: dict  # of the paper's model
    batch: int  # images
    shape: tuple[int, int]  # height, width of each, pixels


SIZES = {
    'small': Size(RESNET18, 4, (256, 256)),
    'demo': Size(LITE0, 8, (192, 192)),
    'r50-320x544': Size({}, 2, (320, 544)),
    'r50-800x1333': Size({}, 1, (800, 1333)),
    'r50-800x1333-2': Size({}, 2, (800, 1333)),
    'r50-800x1333-4': Size({}, 4, (800, 1333)),
}
NAMES = ('mmdet', 'ours')
# Relative, of float32 losses and scores.
TOLERANCE = 1e-4


class Setup(NamedTuple):
    """What is measured, in values that JSON has."""

    size: str  # of SIZES, whose model it is
    variant: str  # of VARIANTS
    batch: int  # images
    shape: tuple[int, int]  # height, width of each, pixels
    changes: dict  # single values of the model: dotted key -> value


def setup_of(size, variant, batch=None):
    """The Setup of a size, with its own number of images unless `batch` says another."""
    return Setup(size, variant, batch or SIZES[size].batch, SIZES[size].shape, {})


def model_config(setup):
    """A model's config: the paper's, with the changes of size and variant, and single values."""
    config = Config.fromfile(BASE)
    config.merge_from_dict(dict(model=dict(backbone=dict(init_cfg=None))))
    for part in (SIZES[setup.size].changes, VARIANTS[setup.variant]):
        # Merging takes `_delete_` out of what is merged.
        part = copy.deepcopy(dict(model=part))
        config = Config(Config._merge_a_into_b(part, config.to_dict()))
    config.merge_from_dict({f'model.{key}': value for key, value in setup.changes.items()})
    return config.model


def build(config, names=NAMES):
    """Ours and mmdet's on the CPU, with the same random weights.

    Args:
        config: of `model_config`.
        names: of NAMES, those to return.

    Returns:
        dict: name -> model.
    """
    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # else a line per parameter
    ours = MODELS.build(config)
    ours.init_weights()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    models = {'ours': ours}
    if 'mmdet' in names:
        models['mmdet'] = mmdet_model(config)
        models['mmdet'].load_state_dict(export(ours.state_dict(), 'mmdet'))
    logging.disable(logging.NOTSET)
    return {name: models[name] for name in names}


def without_dropout(model):
    """Switches dropout off, in any of the ways in which modules keep it; returns how to undo."""
    changed = []
    for module in model.modules():
        for name in ('p', 'dropout', 'ffn_drop'):
            value = getattr(module, name, None)
            if isinstance(value, float) and value > 0:
                changed.append((module, name, value))
                setattr(module, name, 0.0)
    return changed


def check_equal(models, inputs, samples):
    """Ends the program when losses or detections differ."""
    results = {}
    for name, model in models.items():
        changed = without_dropout(model)
        model.train()
        with torch.no_grad():
            losses = model.loss(inputs, samples)
            model.eval()
            best = model.predict(inputs, samples)[0].pred_instances.scores
        for module, attribute, value in changed:
            setattr(module, attribute, value)
        results[name] = (
            {key: float(sum(v) if isinstance(v, list) else v) for key, v in losses.items()},
            best.cpu(),
        )
    (mine, my_scores), (other, their_scores) = results['ours'], results['mmdet']
    for name, expected in other.items():
        if not abs(mine[name] - expected) <= TOLERANCE * max(abs(expected), 1e-3):
            raise SystemExit(f'{name} is {mine[name]} in ours and {expected} in mmdet')
    if not torch.allclose(my_scores, their_scores, rtol=TOLERANCE, atol=1e-6):
        raise SystemExit("ours and mmdet's scores differ")
