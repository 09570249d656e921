"""What is missing and what is left over in weights that come without a config."""

import pytest
import torch
from bridge_cases import KINDS, bridge_config, ours, source
from mmdet.models.backbones import ResNet, ResNetV1d
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ddetr_plugin.checkpoints import DIALECTS, OURS, Problems, export, to_ours
from ddetr_plugin.checkpoints.names.resnets import RESNETS, resnet_depth, resnet_names
from ddetr_plugin.config_files import config_files, find_config
from ddetr_plugin.registry import MODELS


def on_meta(kind, depth=50):
    with torch.device('meta'):
        return kind(depth=depth)


def written(dialect, kind='base', **changes):
    state = MODELS.build(bridge_config(kind, **changes)).state_dict()
    return dict(state) if dialect == OURS else export(state, dialect)


@pytest.fixture(params=[OURS, *DIALECTS])
def dialect(request):
    return request.param


def problems(state):
    return to_ours(source(state), allow_missing=True).problems


@pytest.mark.parametrize('depth', RESNETS)
def test_the_names_of_a_resnet_are_those_of_mmdets(depth):
    state = on_meta(ResNet, depth).state_dict()
    wanted = {name for name in state if not name.endswith('num_batches_tracked')}
    assert set(resnet_names(depth)) == wanted
    assert len(resnet_names(depth)) == len(wanted)
    assert resnet_depth(state) == depth


def test_a_resnet_with_another_stem_is_not_taken_for_a_plain_one():
    assert resnet_depth(on_meta(ResNetV1d).state_dict()) is None
    assert resnet_depth(['blocks.0.conv1.weight', 'blocks.0.bn1.weight']) is None
    assert resnet_depth([]) is None
    # One block more than any has.
    assert resnet_depth([*resnet_names(152), 'layer1.3.conv1.weight']) is None


@pytest.mark.parametrize('kind', KINDS)
def test_complete_weights_have_no_problems(dialect, kind):
    result = to_ours(source(written(dialect, kind)))
    assert not result.problems
    assert not any('not checked' in note for note in result.notes)


def test_a_tensor_of_the_backbone_that_is_missing_or_left_over_is_found(dialect):
    state = written(dialect)
    norm = next(n for n in state if n.endswith('running_var'))
    extra = norm.replace('running_var', 'momentum')
    del state[norm]
    state[extra] = torch.zeros(1)
    found = problems(state)
    (missing,), (left_over,) = found.missing, found.extra
    assert found == Problems(missing=(missing,), extra=(left_over,))
    assert missing.startswith('backbone.') and missing.endswith('running_var')
    assert left_over.startswith('backbone.') and left_over.endswith('momentum')
    assert found.lines() == [f'missing: {missing}', f'left over: {left_over}']
    with pytest.raises(ValueError, match='2 problems') as error:
        to_ours(source(state))
    assert all(line in str(error.value) for line in found.lines())
    assert '--config' in str(error.value)


def test_a_whole_block_and_a_whole_backbone_are_missed():
    state = written(OURS)
    for n in [n for n in state if n.startswith('backbone.layer4.1.')]:
        del state[n]
    found = problems(state)
    assert {name.rsplit('.', 2)[0] for name in found.missing} == {'backbone.layer4.1'}
    assert found == Problems(missing=found.missing)
    assert len(found.missing) == 10
    bare = {n: t for n, t in state.items() if not n.startswith('backbone')}
    assert problems(bare) == Problems(missing_parts=('backbone',))
    assert problems(bare).lines() == ['missing: every tensor of the backbone']


def test_a_name_below_a_known_module_that_it_does_not_have_is_left_over(dialect):
    state = written(dialect)
    linear = next(n for n in state if n.endswith('sampling_offsets.weight'))
    state[linear.replace('weight', 'scale')] = torch.zeros(1)
    extra = 'encoder.layers.0.self_attn.sampling_offsets.scale'
    assert problems(state) == Problems(extra=(extra,))


@pytest.mark.parametrize('name', ['encoder.level_embed2', 'bbox_head.cls_branches.7.weight', 'x'])
def test_our_own_files_have_nothing_left_over(name):
    found = problems({**written(OURS), name: torch.zeros(5, 64)})
    assert found == Problems(extra=(name,))


def test_our_own_files_miss_what_they_lack():
    state = written(OURS, 'two-stage')
    for name in ('query_head.pos_trans_fc.bias', 'bbox_head.reg_branches.1.4.weight'):
        del state[name]
    missing = ('query_head.pos_trans_fc.bias', 'bbox_head.reg_branches.1.4.weight')
    assert problems(state) == Problems(missing=missing)


@pytest.mark.parametrize('dialect', [OURS, 'mmdet'])
def test_a_neck_has_all_biases_or_none(dialect):
    state = written(dialect, neck=dict(bias=False))
    assert not problems(state)
    half = 'neck.convs.0.conv.bias'
    state[half] = torch.zeros(64)
    found = problems(state)
    assert 'neck.extra_convs.0.conv.bias' in found.missing
    assert len(found.missing) == len(found.lines()) == 3


@pytest.mark.parametrize('part', 'qkv')
def test_two_of_three_projections_of_transformers_are_not_dropped(part):
    state = written('transformers')
    name = f'model.decoder.layers.0.self_attn.{part}_proj.weight'
    del state[name]
    found = problems(state)
    assert found.missing == ('decoder.layers.0.self_attn.attn.in_proj_weight',)
    assert len([name for name in found.extra if '_proj.weight' in name]) == 2


def test_another_backbone_is_said_to_be_unchecked():
    state = {n.replace('backbone.', 'backbone.stem.'): t for n, t in written(OURS).items()}
    del state['backbone.stem.bn1.weight']
    result = to_ours(source(state))
    assert not result.problems
    assert any('complete was not checked; --config' in note for note in result.notes)
    state['neck.x'] = torch.zeros(1)
    with pytest.raises(ValueError, match='1 problem:\n  left over: neck.x\n'):
        to_ours(source(state))


@pytest.mark.parametrize(
    'name', [name for name in config_files() if not name.startswith(('detr', 'faster', 'sparse'))]
)
def test_the_models_of_all_configs_are_complete(name):
    """Those with parts that are not the paper's are compared with their config."""
    config = Config.fromfile(find_config(name)).model
    resnet = 'ResNet' in config.backbone.type
    # mmdet's EfficientNet reads numbers from tensors while it is built.
    device = 'cpu' if 'EfficientNet' in config.backbone.type else 'meta'
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device(device):
        state = MODELS.build(config).state_dict()
    target = None
    usual = (config.neck.type, config.encoder.layer.self_attn.type)
    if 'mask_head' in config or usual != ('ChannelMapper', 'ddetr_plugin.MSDeformAttn'):
        with pytest.raises(ValueError, match='other parts, name its config with --config'):
            to_ours(source(state))
        target = state
    result = to_ours(source(state), target=target)
    assert not result.problems
    if target is None:
        assert any('not checked' in note for note in result.notes) != resnet


def test_half_converted_files_do_not_pass_as_ours():
    """Our names with one that official files have."""
    state = ours('base').state_dict()
    state['input_proj.0.0.weight'] = state['neck.convs.0.conv.weight']
    assert problems(state) == Problems(extra=('input_proj.0.0.weight',))
