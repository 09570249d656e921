"""The number of levels: stated by the neck's config, and by nothing else unless it wants to."""

import copy

import pytest
import torch
from builders import batch, build, tiny_config
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope

from ddetr_plugin.checkpoints.parity.other_models import mmdet_config, transformers_model
from ddetr_plugin.config_files import config_files, find_config
from ddetr_plugin.config_levels import with_num_levels
from ddetr_plugin.models import MSDeformAttn
from ddetr_plugin.registry import MODELS


def without_levels(config):
    """A copy in which no part states the number of levels."""
    if isinstance(config, dict):
        items = {key: without_levels(value) for key, value in config.items()}
        items.pop('num_levels', None)
        return type(config)(items)
    return config


def modules_with_levels(model):
    return [module for module in model.modules() if hasattr(module, 'num_levels')]


def test_encoder_and_every_attention_have_the_levels_of_the_neck():
    config = without_levels(tiny_config(neck=dict(num_outs=3)))
    before = copy.deepcopy(config.to_dict())
    model = build(config)
    assert len(model.encoder.level_embed) == 3
    assert [module.num_levels for module in modules_with_levels(model)] == [3, 3, 3]
    losses = model.loss(*batch())
    assert all(loss.isfinite() for loss in losses.values())
    assert config.to_dict() == before


def test_it_is_the_model_whose_config_states_every_number():
    stated, derived = tiny_config(), without_levels(tiny_config())
    assert with_num_levels(derived) == stated
    one, other = build(stated).state_dict(), build(derived).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_number_that_is_stated_stays():
    config = without_levels(tiny_config())
    config.decoder.layer.cross_attn.num_levels = 3
    model = build(config)
    assert [module.num_levels for module in modules_with_levels(model)] == [4, 3, 3]
    with pytest.raises(ValueError, match='leave num_levels of every MSDeformAttn out'):
        model.loss(*batch())


@MODELS.register_module()
class AttentionWithoutLevels(BaseModule):
    """An outsider's, which takes any number."""

    def __init__(self, embed_dims):
        super().__init__()
        self.mix = torch.nn.Linear(embed_dims, embed_dims)

    def forward(self, query, memory, reference_points, levels):
        return self.mix(query)


@MMDET_MODELS.register_module()
class AttentionOfTheUser(MSDeformAttn):
    """Registered in mmdet's scope, and named without one."""


def test_parts_of_other_packages_get_the_number_if_they_take_it():
    config = without_levels(tiny_config(neck=dict(num_outs=3)))
    config.encoder.layer.self_attn = dict(type='ddetr_plugin.AttentionWithoutLevels', embed_dims=32)
    config.decoder.layer.cross_attn.type = 'AttentionOfTheUser'
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build(config)
    assert [module.num_levels for module in modules_with_levels(model)] == [3, 3]
    model.loss(*batch())


@pytest.mark.parametrize(
    ('neck', 'count'),
    [
        (dict(type='FPN', num_outs=5), 5),
        (dict(type='SimpleFeaturePyramid', scales=(2, 1)), 2),
        (dict(type='ChannelMapper'), None),
    ],
)
def test_the_neck_states_it_as_its_maps_or_its_scales(neck, count):
    encoder = dict(type='ddetr_plugin.DeformableTransformerEncoder')
    attention = dict(type=MSDeformAttn)
    config = dict(neck=neck, encoder=encoder, decoder=dict(layer=dict(cross_attn=attention)))
    completed = with_num_levels(config)
    assert completed['encoder'].get('num_levels') == count
    assert completed['decoder']['layer']['cross_attn'].get('num_levels') == count
    assert encoder.keys() == attention.keys() == {'type'}


@pytest.mark.parametrize('name', config_files())
def test_no_config_of_ours_states_it_twice(name):
    model = Config.fromfile(find_config(name)).model.to_dict()
    assert without_levels(model) == model


def test_models_of_other_libraries_have_it_too():
    config = without_levels(tiny_config(embed_dims=64, neck=dict(num_outs=3)))
    theirs = mmdet_config(config)
    assert theirs['num_feature_levels'] == 3
    assert theirs['encoder']['layer_cfg']['self_attn_cfg']['num_levels'] == 3
    assert theirs['decoder']['layer_cfg']['cross_attn_cfg']['num_levels'] == 3
    pytest.importorskip('transformers')
    assert transformers_model(config).config.num_feature_levels == 3
