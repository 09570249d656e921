"""Checkpoints of mmdet 2.x: names, shapes, configs and outputs that mmdet 2.28.2 itself wrote."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bridge_cases import bridge_config
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ddetr_plugin.checkpoints import describe, to_ours, unwrap
from ddetr_plugin.checkpoints.files.stated_settings import file_settings, setting_mismatches
from ddetr_plugin.checkpoints.parity.other_models import predict_with
from ddetr_plugin.checkpoints.parity.source_models import source_model
from ddetr_plugin.config_files import find_config
from ddetr_plugin.engine import ForeignCheckpointHook
from ddetr_plugin.registry import MODELS

FOLDER = Path(__file__).resolve().parents[1] / 'data' / 'mmdet_2'
sys.path.insert(0, str(FOLDER))
from recorded_weights import IMAGE_SHAPES, images, random_weights  # noqa: E402

KINDS = ('base', 'refine', 'two-stage')


def recorded(kind):
    """(the file that mmdet 2.28.2 would have saved, logits, boxes)."""
    record = json.loads((FOLDER / f'{kind}.json').read_text())
    meta = {'config': record['config'], 'CLASSES': ('a', 'b', 'c', 'd', 'e'), 'epoch': 50}
    content = {
        'state_dict': random_weights(record['names']),
        'meta': meta,
        'optimizer': {'state': {}},
    }
    numbers = [torch.tensor([float(x) for x in record[k].split()]) for k in ('logits', 'boxes')]
    return content, numbers[0].reshape(2, 12, -1), numbers[1].reshape(2, 12, 4)


def our_config(kind):
    """Our model of a recording's settings."""
    return bridge_config(kind, 5, neck=dict(bias=False))


def assert_computes(model, logits, boxes):
    with torch.no_grad():
        found = predict_with(model.eval(), images(), IMAGE_SHAPES)
    torch.testing.assert_close(found[0], logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(found[1], boxes, rtol=0, atol=5e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_our_model_computes_what_mmdet_2_computed(kind):
    content, logits, boxes = recorded(kind)
    model = MODELS.build(our_config(kind))
    source = unwrap(content)
    result = to_ours(source, target=model.state_dict())
    assert (result.dialect, result.architecture.variant) == ('mmdet', kind)
    assert not result.problems
    assert len(result.state) == len(content['state_dict']) - repeated(content, kind)
    model.load_state_dict(result.state, strict=True)
    assert_computes(model, logits, boxes)
    assert 'note: the names of mmdet 2.x became those of mmdet 3' in describe(result, source)


def repeated(content, kind):
    """How many of the names are those of a head that the base model has once, but saves twice."""
    heads = ('bbox_head.cls_branches.1.', 'bbox_head.reg_branches.1.')
    return sum(name.startswith(heads) for name in content['state_dict']) if kind == 'base' else 0


@pytest.mark.parametrize('kind', KINDS)
def test_the_config_in_the_file_becomes_one_that_mmdet_3_builds_the_same_model_from(kind):
    content, logits, boxes = recorded(kind)
    source = unwrap(content)
    model = Config.fromstring(source.meta['cfg'], '.py').model
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        theirs = MMDET_MODELS.build(model)
    theirs.load_state_dict(source.state, strict=True)
    assert_computes(theirs, logits, boxes)


@pytest.mark.parametrize('kind', KINDS)
def test_the_config_in_the_file_is_compared_with_the_model(kind):
    source = unwrap(recorded(kind)[0])
    said = file_settings(source.meta, 'mmdet')
    assert said['with_box_refine'] == (kind != 'base')
    assert said['two_stage'] == (kind == 'two-stage')
    assert (said['encoder heads'], said['decoder points']) == (4, 2)
    assert source.dilated is False
    model = MODELS.build(our_config(kind))
    assert setting_mismatches(source.meta, 'mmdet', model) == []
    model.encoder.layers[0].self_attn.num_heads = 8
    assert setting_mismatches(source.meta, 'mmdet', model) == ['encoder heads 4, not 8']


@pytest.mark.parametrize(
    ('old', 'new', 'said'),
    [
        (
            "operation_order=('self_attn', 'norm', 'ffn', 'norm')",
            "operation_order=('norm', 'self_attn', 'norm', 'ffn')",
            'encoder operation order (norm, self_attn, norm, ffn), not '
            '(self_attn, norm, ffn, norm)',
        ),
        (
            "type='BaseTransformerLayer',",
            "type='BaseTransformerLayer', norm_cfg=dict(type='LN', eps=0.1),",
            'encoder norm eps 0.1, not 1e-05',
        ),
    ],
)
def test_layers_of_mmdet_2_that_weights_do_not_show_are_compared(old, new, said):
    content, _, _ = recorded('base')
    assert old in content['meta']['config']
    content['meta']['config'] = content['meta']['config'].replace(old, new)
    source = unwrap(content)
    model = MODELS.build(our_config('base'))
    assert setting_mismatches(source.meta, 'mmdet', model) == [said]
    # mmdet 3 has no layer whose norms come first, so nothing may vouch for it.
    if 'operation' in said:
        with pytest.raises(ValueError, match='mmdet cannot build'):
            source_model(source.state, source.meta, 'mmdet')


@pytest.mark.parametrize('part', ['DeformableDetrTransformer', 'BaseTransformerLayer'])
def test_parts_that_are_none_of_mmdet_2_vouch_for_nothing(part):
    content, _, _ = recorded('base')
    content['meta']['config'] = content['meta']['config'].replace(f"'{part}'", f"'My{part}'")
    assert 'cfg' not in unwrap(content).meta


@pytest.mark.parametrize(
    'text',
    [
        '',
        'model = ',
        'model = dict()',
        'model = make()',
        "model = dict(type='RetinaNet', bbox_head=dict(type='RetinaHead'))",
        'model = dict(bbox_head=dict(transformer=dict(encoder=3)))',
        "raise SystemExit('run')",
    ],
)
def test_another_config_in_the_file_says_nothing(text):
    content, _, _ = recorded('base')
    content['meta']['config'] = text
    source = unwrap(content)
    assert 'cfg' not in source.meta
    assert to_ours(source).architecture.variant == 'base'


def test_class_rows_of_mmdet_2_move_by_name():
    content, _, _ = recorded('refine')
    result = to_ours(unwrap(content), classes=('e', 'new', 'a'))
    assert result.rows == (4, None, 0)


def test_detr_of_mmdet_2_gets_the_names_of_mmdet_3_and_computes_the_same(tmp_path):
    """With the hook, in mmdet 3's own DETR."""
    content, logits, boxes = recorded('detr')
    config = Config.fromfile(find_config('detr_r50_16xb4-500e_coco')).model
    config.backbone.update(depth=18, init_cfg=None)
    config.neck.update(in_channels=[512], out_channels=64)
    config.num_queries, config.positional_encoding.num_feats = 12, 32
    config.bbox_head.update(num_classes=5, embed_dims=64)
    for coder, layers in ((config.encoder, 1), (config.decoder, 2)):
        coder.num_layers = layers
        coder.layer_cfg.ffn_cfg.update(embed_dims=64, feedforward_channels=48)
        for key in coder.layer_cfg.keys() & {'self_attn_cfg', 'cross_attn_cfg'}:
            coder.layer_cfg[key].update(embed_dims=64, num_heads=4)
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MMDET_MODELS.build(config)
    runner = SimpleNamespace(model=model, _resume=False, cfg={})
    content['state_dict'] = {f'module.{n}': t for n, t in content['state_dict'].items()}
    ForeignCheckpointHook().after_load_checkpoint(runner, content)
    model.load_state_dict(content['state_dict'], strict=True)
    metas = [dict(img_shape=s, batch_input_shape=(96, 128)) for s in IMAGE_SHAPES]
    samples = [DetDataSample(metainfo=meta) for meta in metas]
    with torch.no_grad():
        model.eval()
        outputs = model.forward_transformer(model.extract_feat(images()), samples)
        found = model.bbox_head(outputs['hidden_states'])
    torch.testing.assert_close(found[0][-1], logits, rtol=0, atol=2e-5)
    torch.testing.assert_close(found[1][-1], boxes, rtol=0, atol=5e-6)
