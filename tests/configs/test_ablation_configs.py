"""The paper's ablations (table 2): each differs from the base in what its row says."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ddetr_plugin.config_files import find_config
from ddetr_plugin.models import MSDeformAttn, SameLevelDeformAttn
from ddetr_plugin.registry import MODELS

BASE, SINGLE_SCALE_K1, SAME_LEVEL_K1, SAME_LEVEL, FPN = (
    f'deformable-detr_r50{kind}_16xb2-50e_coco.py'
    for kind in ('', '-single-scale-k1', '-same-level-k1', '-same-level', '-fpn')
)
SINGLE_SCALE = 'deformable-detr_r50-single-scale_16xb2-50e_coco.py'


def build(name):
    config = Config.fromfile(find_config(name))
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
        return MODELS.build(config.model)


def flat(value, path='') -> dict:
    """Dotted keys and values of a config."""
    if not isinstance(value, dict):
        return {path: value}
    result = {}
    for key, inner in value.items():
        result |= flat(inner, f'{path}.{key}'.lstrip('.'))
    return result


def differences(name, base=BASE) -> set:
    """Dotted keys of the model at which two configs differ."""
    one, other = (flat(Config.fromfile(find_config(n)).model.to_dict()) for n in (name, base))
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


ENCODER, DECODER = 'encoder.layer.self_attn', 'decoder.layer.cross_attn'


@pytest.mark.parametrize(
    ('name', 'base', 'expected'),
    [
        (SAME_LEVEL, BASE, {f'{ENCODER}.type'}),
        (SAME_LEVEL_K1, SAME_LEVEL, {f'{ENCODER}.num_points', f'{DECODER}.num_points'}),
        (SINGLE_SCALE_K1, SINGLE_SCALE, {f'{ENCODER}.num_points', f'{DECODER}.num_points'}),
    ],
)
def test_an_ablation_changes_what_its_row_says_and_nothing_else(name, base, expected):
    assert differences(name, base) == expected


def test_fpn_changes_the_neck_only():
    assert all(key.startswith('neck.') for key in differences(FPN))


@pytest.mark.parametrize('name', [SINGLE_SCALE_K1, SAME_LEVEL_K1, SAME_LEVEL, FPN])
def test_the_recipe_is_that_of_the_base(name):
    ours, base = (Config.fromfile(find_config(n)).to_dict() for n in (name, BASE))
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'train_dataloader'):
        assert ours[key] == base[key]


@pytest.mark.parametrize(
    ('name', 'encoder', 'levels', 'points'),
    [
        (SINGLE_SCALE_K1, MSDeformAttn, 1, 1),
        (SAME_LEVEL_K1, SameLevelDeformAttn, 4, 1),
        (SAME_LEVEL, SameLevelDeformAttn, 4, 4),
    ],
)
def test_attention_is_of_the_kind_levels_and_points_of_its_row(name, encoder, levels, points):
    model = build(name)
    for layer in model.encoder.layers:
        attention = layer.self_attn
        assert type(attention) is encoder
        assert attention.num_levels == levels
        assert getattr(attention, 'attn', attention).num_points == points
    for layer in model.decoder.layers:
        attention = layer.cross_attn
        assert (attention.num_levels, attention.num_points) == (levels, points)


@pytest.mark.parametrize('name', [FPN, BASE])
def test_fpn_gives_the_levels_of_the_base(name):
    config = Config.fromfile(find_config(name)).model
    with DefaultScope.overwrite_default_scope('mmdet'):
        neck = MODELS.build(config.neck)
    maps = [torch.randn(1, c, 32 // s, 48 // s) for c, s in ((512, 1), (1024, 2), (2048, 4))]
    shapes = [tuple(level.shape) for level in neck(maps)]
    assert shapes == [(1, 256, 32 // s, 48 // s) for s in (1, 2, 4, 8)]


def test_only_fpn_carries_the_top_down_path():
    """The finest level sees the coarsest map through FPN, and not through the base's neck."""
    for name, reaches in ((FPN, True), (BASE, False)):
        config = Config.fromfile(find_config(name)).model
        with DefaultScope.overwrite_default_scope('mmdet'):
            neck = MODELS.build(config.neck)
        maps = [torch.randn(1, c, 8 // s, 8 // s) for c, s in ((512, 1), (1024, 2), (2048, 4))]
        coarsest = maps[2].requires_grad_()
        finest = neck(maps)[0].square().sum()
        (gradient,) = torch.autograd.grad(finest, coarsest, allow_unused=True)
        assert (gradient is not None and bool(gradient.any())) == reaches


@pytest.mark.parametrize('name', [SINGLE_SCALE_K1, SAME_LEVEL_K1, SAME_LEVEL, FPN])
def test_an_ablation_takes_a_training_step_and_predicts(name):
    from builders import batch, initialise

    config = Config.fromfile(find_config(name))
    changes = dict(
        backbone=dict(base_channels=8, init_cfg=None),
        neck=dict(in_channels=[channels // 8 for channels in config.model.neck.in_channels]),
        encoder=dict(num_layers=1),
        decoder=dict(num_layers=2),
        bbox_head=dict(num_layers=2, max_per_img=10),
        query_head=dict(num_queries=20),
    )
    config.merge_from_dict(dict(model=changes))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    initialise(model)
    inputs, samples = batch()
    losses = model.loss(inputs, samples)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    model.eval()
    with torch.no_grad():
        results = model.predict(inputs, samples)
    assert [len(result.pred_instances) for result in results] == [10, 10]
    assert all(result.pred_instances.bboxes.isfinite().all() for result in results)
