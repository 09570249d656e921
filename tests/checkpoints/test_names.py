"""The name table, against names written by the projects themselves."""

import pytest
from bridge_cases import KINDS, ours

from ddetr_plugin.checkpoints import DIALECTS, OURS, detect_architecture, detect_dialect, export
from ddetr_plugin.checkpoints.names.table import module_names, translate

# Names of published files: two encoder and two decoder layers would have all of these.
EXAMPLES = {
    'official': {
        'backbone.0.body.layer2.0.downsample.1.bias': 'backbone.layer2.0.downsample.1.bias',
        'input_proj.2.1.weight': 'neck.convs.2.gn.weight',
        'input_proj.3.0.bias': 'neck.extra_convs.0.conv.bias',
        'transformer.encoder.layers.0.linear2.bias': 'encoder.layers.0.ffn.layers.1.bias',
        'transformer.decoder.layers.1.norm1.weight': 'decoder.layers.1.norms.1.weight',
        'transformer.decoder.layers.1.norm2.weight': 'decoder.layers.1.norms.0.weight',
        'transformer.decoder.layers.1.self_attn.in_proj_weight': (
            'decoder.layers.1.self_attn.attn.in_proj_weight'
        ),
        'transformer.reference_points.weight': 'query_head.reference_points_fc.weight',
        'bbox_embed.0.layers.1.weight': 'bbox_head.reg_branches.0.2.weight',
    },
    'mmdet': {
        'backbone.layer3.1.bn2.num_batches_tracked': 'backbone.layer3.1.bn2.num_batches_tracked',
        'neck.extra_convs.0.gn.bias': 'neck.extra_convs.0.gn.bias',
        'decoder.layers.0.cross_attn.sampling_offsets.weight': (
            'decoder.layers.0.cross_attn.sampling_offsets.weight'
        ),
        'decoder.layers.0.norms.2.bias': 'decoder.layers.0.norms.2.bias',
        'reference_points_fc.bias': 'query_head.reference_points_fc.bias',
        'bbox_head.reg_branches.0.4.bias': 'bbox_head.reg_branches.0.4.bias',
    },
    'transformers': {
        'model.backbone.conv_encoder.model.layer4.2.conv3.weight': 'backbone.layer4.2.conv3.weight',
        'model.input_proj.0.0.weight': 'neck.convs.0.conv.weight',
        'model.query_position_embeddings.weight': 'query_head.query_embedding.weight',
        'model.encoder.layers.0.fc1.weight': 'encoder.layers.0.ffn.layers.0.0.weight',
        'model.encoder.layers.0.final_layer_norm.bias': 'encoder.layers.0.norms.1.bias',
        'model.decoder.layers.1.encoder_attn.value_proj.weight': (
            'decoder.layers.1.cross_attn.value_proj.weight'
        ),
        'model.decoder.layers.1.encoder_attn_layer_norm.weight': 'decoder.layers.1.norms.1.weight',
        'model.decoder.layers.1.final_layer_norm.weight': 'decoder.layers.1.norms.2.weight',
        'class_embed.1.bias': 'bbox_head.cls_branches.0.bias',
    },
    'detrex': {
        'backbone.stem.conv1.norm.running_mean': 'backbone.bn1.running_mean',
        'backbone.res4.0.shortcut.weight': 'backbone.layer3.0.downsample.0.weight',
        'backbone.res4.0.shortcut.norm.bias': 'backbone.layer3.0.downsample.1.bias',
        'backbone.res2.1.conv2.norm.weight': 'backbone.layer1.1.bn2.weight',
        'neck.convs.1.norm.weight': 'neck.convs.1.gn.weight',
        'transformer.level_embeds': 'encoder.level_embed',
        'transformer.encoder.layers.1.attentions.0.output_proj.bias': (
            'encoder.layers.1.self_attn.output_proj.bias'
        ),
        'transformer.decoder.layers.0.attentions.0.attn.in_proj_bias': (
            'decoder.layers.0.self_attn.attn.in_proj_bias'
        ),
        'transformer.decoder.layers.0.attentions.1.sampling_offsets.bias': (
            'decoder.layers.0.cross_attn.sampling_offsets.bias'
        ),
        'transformer.decoder.layers.0.ffns.0.layers.1.bias': 'decoder.layers.0.ffn.layers.1.bias',
        'query_embedding.weight': 'query_head.query_embedding.weight',
    },
}


@pytest.fixture(scope='module')
def architecture():
    return detect_architecture(ours('base').state_dict(), OURS)._replace(encoder_layers=2)


@pytest.mark.parametrize('dialect', DIALECTS)
def test_published_names_have_their_place(dialect, architecture):
    modules = module_names(dialect, architecture).ours()
    for name, wanted in EXAMPLES[dialect].items():
        assert translate(name, modules) == wanted


@pytest.mark.parametrize('dialect', DIALECTS)
@pytest.mark.parametrize('kind', KINDS)
def test_every_name_leads_back_to_where_it_came_from(dialect, kind):
    architecture = detect_architecture(ours(kind).state_dict(), OURS)
    names = module_names(dialect, architecture)
    assert len(set(names.theirs.values())) == len(names.theirs)
    assert not names.aliases.keys() & set(names.theirs.values())
    back = names.ours()
    assert all(back[other] == mine for mine, other in names.theirs.items())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dialect', DIALECTS)
def test_dialect_and_variant_are_found_in_what_was_exported(dialect, kind):
    model = ours(kind)
    state = export(model.state_dict(), dialect)
    assert detect_dialect(state) == dialect
    architecture = detect_architecture(state, dialect)
    assert architecture == detect_architecture(model.state_dict(), OURS)
    assert architecture.variant == kind


def test_our_own_names_and_those_of_other_models_are_told_apart():
    assert detect_dialect(ours('base').state_dict()) == OURS
    assert detect_dialect(['backbone.conv1.weight', 'bbox_head.cls_branches.0.weight']) is None
    with pytest.raises(ValueError, match='mmdet 2.x'):
        detect_dialect(['bbox_head.transformer.level_embeds'])
