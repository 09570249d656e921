"""Weights through the bridge: round trips, what is left over, D1 to D3, class surgery."""

import json

import pytest
import torch
from bridge_cases import KINDS, assert_same, bridge_config, empty, ours, source
from builders import build
from mmengine.config import Config

from ddetr_plugin.checkpoints import (
    OURS,
    OtherShape,
    Problems,
    export,
    read_checkpoint,
    to_ours,
    write_checkpoint,
)
from ddetr_plugin.checkpoints.class_rows.rows import (
    COCO_GAPS,
    OFFICIAL_TO_COCO,
    coco_classes,
    coco_rows,
)
from ddetr_plugin.checkpoints.parity.other_models import (
    largest_difference,
    mmdet_model,
    predict_with,
    with_rows,
)
from ddetr_plugin.registry import MODELS

COUNTER = ('num_batches_tracked',)


def released(kind, dialect, classes=91, seed=0):
    """(our model, its weights as `dialect` publishes them)."""
    model = ours(kind, classes, seed)
    return model, export(model.state_dict(), dialect)


def converted(state, kind, rows, **options):
    return to_ours(source(state), target=empty(kind, rows).state_dict(), **options)


def mmdets_own(kind):
    """mmdet's model as mmdet builds it, without biases in the neck, with random weights."""
    model = mmdet_model(bridge_config(kind, neck=dict(bias=False)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'norm' not in name and '.bn' not in name and 'downsample.1' not in name:
                parameter.normal_(std=0.05)
    return model


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dialect', ['official', 'mmdet', 'transformers', 'detrex'])
def test_weights_of_every_dialect_become_ours_bit_for_bit(dialect, kind):
    model, state = released(kind, dialect, classes=5)
    for target in (None, empty(kind).state_dict()):
        result = to_ours(source(state), target=target)
        assert (result.dialect, result.architecture.variant) == (dialect, kind)
        assert_same(result.state, model.state_dict(), COUNTER)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dialect', ['official', 'transformers'])
def test_a_trip_over_our_80_classes_and_back_keeps_every_bit(dialect, kind):
    _, state = released(kind, dialect)
    result = to_ours(source(state))
    heads = [n for n in result.state if 'cls_branch' in n]
    assert {len(result.state[name]) for name in heads} == {80}
    back = export(result.state, dialect, result.architecture, coco=True, dropped=result.dropped)
    assert_same(back, state)


@pytest.mark.parametrize('kind', ['base', 'refine', 'two-stage'])
def test_mmdets_own_model_comes_back_bit_for_bit(kind):
    state = mmdets_own(kind).state_dict()
    result = to_ours(source(state), target=empty(kind).state_dict())
    assert (result.dialect, result.problems) == ('mmdet', Problems())
    assert_same(export(result.state, 'mmdet', result.architecture), state)


@pytest.mark.parametrize('kind', ['base', 'refine', 'two-stage'])
def test_mmdets_own_model_and_ours_agree_with_the_missing_bias_at_zero(kind):
    """D1: what mmdet leaves out is zero, on padded pictures."""
    theirs = mmdets_own(kind)
    model = empty(kind)
    result = to_ours(source(theirs.state_dict()), target=model.state_dict())
    model.load_state_dict(result.state, strict=True)
    assert any('D1' in note for note in result.notes)
    for name, parameter in model.neck.named_parameters():
        if 'conv.bias' in name:
            assert not parameter.any()
    logits, boxes = largest_difference(model, theirs)
    assert logits < 1e-5
    assert boxes < 1e-6


def test_a_model_without_bias_takes_mmdets_weights_and_refuses_the_official_ones():
    """D1: official biases have no place in mmdet's default neck."""
    model = MODELS.build(bridge_config('base', neck=dict(bias=False)))
    theirs = {n: t for n, t in released('base', 'mmdet', 5)[1].items() if 'conv.bias' not in n}
    assert not to_ours(source(theirs), target=model.state_dict()).problems
    with pytest.raises(ValueError, match=r'left over: neck\.convs\.0\.conv\.bias'):
        to_ours(source(released('base', 'official', 5)[1]), target=model.state_dict())


@pytest.mark.parametrize(
    ('dialect', 'name'),
    [
        ('official', 'input_proj.{}.0.bias'),
        ('transformers', 'model.input_proj.{}.0.bias'),
        ('detrex', 'neck.convs.{}.conv.bias'),
    ],
)
def test_a_model_without_bias_is_written_with_zeros_where_others_have_one(dialect, name):
    """D1: their models have a bias there and would miss it."""
    model = build(bridge_config('base', neck=dict(bias=False)))
    complete = released('base', dialect, 5)[1]
    state = export(model.state_dict(), dialect)
    assert list(state) == list(complete)
    assert not any(state[name.format(i)].any() for i in range(3))
    back = to_ours(source(state), target=empty('base').state_dict())
    inputs = torch.randn(1, 3, 64, 96)
    filled = empty('base')
    filled.load_state_dict(back.state)
    for one, other in zip(*(predict_with(m, inputs, [(64, 96)]) for m in (model, filled))):
        assert torch.equal(one, other)


def test_queries_that_are_not_the_papers_are_not_written_for_others():
    config = bridge_config('two-stage')
    config.query_head.type = 'ddetr_plugin.ContentTwoStageHead'
    state = MODELS.build(config).state_dict()
    with pytest.raises(ValueError, match="paper's TwoStageHead"):
        export(state, 'official')


@pytest.mark.parametrize('dialect', ['official', 'transformers'])
@pytest.mark.parametrize('kind', KINDS)
def test_91_rows_become_those_of_the_80_categories(dialect, kind):
    """D2, and D3: the objectness of the proposals stays in row 0."""
    model, state = released(kind, dialect)
    result = converted(state, kind, 80)
    old = model.state_dict()
    kept = list(OFFICIAL_TO_COCO)
    assert len(kept) == 80
    for name, tensor in result.state.items():
        if 'bbox_head.cls_branches' in name:
            assert torch.equal(tensor, old[name][kept])
        elif 'query_head.cls_branch' in name:
            assert torch.equal(tensor, old[name][:80])
    assert result.classes == coco_classes()


def test_the_gaps_are_the_category_ids_that_coco_leaves_out():
    names = coco_rows()
    assert len(names) == 91
    assert COCO_GAPS == (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
    # Category ids of instances_val2017.json.
    some = {1: 'person', 13: 'stop sign', 27: 'backpack', 67: 'dining table', 90: 'toothbrush'}
    assert {row: names[row] for row in some} == some


def test_rows_for_no_category_never_fire_when_they_were_never_there():
    model = ours('two-stage', 80)
    state = export(model.state_dict(), 'official', coco=True)
    bias = state['class_embed.0.bias']
    assert len(bias) == 91
    assert bias[list(COCO_GAPS)].sigmoid().max() < 1e-8
    proposals = state['class_embed.2.weight']
    assert torch.equal(proposals[:80], model.query_head.cls_branch.weight)


def test_heads_that_are_equal_but_not_shared_fit_a_model_that_refines():
    """A copy of a fresh mmdet model: six heads, all equal."""
    model = ours('refine')
    with torch.no_grad():
        for branches in (model.bbox_head.cls_branches, model.bbox_head.reg_branches):
            branches[1].load_state_dict(branches[0].state_dict())
    state = export(model.state_dict(), 'mmdet')
    assert to_ours(source(state)).architecture.share_branches
    result = converted(state, 'refine', 5)
    assert not result.problems
    (warning,) = result.warnings
    assert 'heads of all layers are equal' in warning


def test_our_model_with_heads_of_its_own_need_not_refine():
    """The names are those of a model that does."""
    state = ours('refine').state_dict()
    for refines in (True, False):
        result = to_ours(source(state), target=state, target_refines=refines)
        assert result.architecture.refines == refines
        assert not result.problems
    equal = released('base', 'mmdet', 5)[1]
    assert not to_ours(source(equal), target=state, target_refines=False).warnings
    official = export(state, 'official')
    with pytest.raises(ValueError, match='the weights are refine, the model is base'):
        to_ours(source(official), target=state, target_refines=False)


def test_mmdets_config_in_the_file_says_whether_equal_heads_refine():
    _, state = released('base', 'mmdet', 5)
    target = empty('refine').state_dict()
    refines = source(state, cfg='model = dict(with_box_refine=True)')
    assert not to_ours(refines, target=target).warnings
    with pytest.raises(ValueError, match='the weights are refine, the model is base'):
        to_ours(refines, target=empty('base').state_dict())
    with pytest.raises(ValueError, match='the weights are base, the model is refine'):
        to_ours(source(state, cfg="model = dict(type='DeformableDETR')"), target=target)


@pytest.mark.parametrize('refines', [True, False])
def test_the_config_of_transformers_says_whether_equal_heads_refine(tmp_path, refines):
    _, state = released('base', 'transformers', 5)
    torch.save(state, tmp_path / 'pytorch_model.bin')
    config = {'model_type': 'deformable_detr', 'with_box_refine': refines}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    file = read_checkpoint(tmp_path)
    kinds = ('refine', 'base') if refines else ('base', 'refine')
    fits, other = (empty(kind).state_dict() for kind in kinds)
    assert not to_ours(file, target=fits).warnings
    with pytest.raises(ValueError, match='the weights are {}, the model is {}'.format(*kinds)):
        to_ours(file, target=other)


def test_the_class_head_that_transformers_tied_is_repeated():
    model, state = released('refine', 'transformers', 5)
    del state['class_embed.1.weight'], state['class_embed.1.bias']
    result = converted(state, 'refine', 5)
    assert torch.equal(
        result.state['bbox_head.cls_branches.1.weight'], model.bbox_head.cls_branches[0].weight
    )
    assert sum('tied' in note for note in result.notes) == 1


@pytest.mark.parametrize('part', ['weight', 'bias'])
def test_half_a_class_head_is_missing_and_not_tied(part):
    _, state = released('refine', 'transformers', 5)
    del state[f'class_embed.1.{part}']
    with pytest.raises(ValueError, match=f'missing: bbox_head.cls_branches.1.{part}'):
        converted(state, 'refine', 5)


@pytest.mark.parametrize('first', [True, False])
def test_transformers_saves_shared_heads_once_under_either_name(first):
    model, state = released('refine', 'transformers', 5)
    prefix = 'bbox_embed' if first else 'model.decoder.bbox_embed'
    state = {n: t for n, t in state.items() if not n.startswith(prefix)}
    if not first:
        # Then nothing but different heads tells that the model refines.
        assert to_ours(source(state)).architecture.variant == 'refine'
    assert_same(converted(state, 'refine', 5).state, model.state_dict(), COUNTER)


def test_the_names_of_newer_transformers_are_read():
    model, state = released('base', 'transformers', 5)
    renamed = {}
    for name, tensor in state.items():
        name = name.replace('backbone.conv_encoder.model', 'backbone.model')
        name = name.replace('.fc1.', '.mlp.fc1.').replace('.fc2.', '.mlp.fc2.')
        renamed[name.replace('self_attn.out_proj', 'self_attn.o_proj')] = tensor
    assert renamed.keys() != state.keys()
    assert_same(converted(renamed, 'base', 5).state, model.state_dict(), COUNTER)


def test_a_misspelt_norm_of_detrex_is_read():
    model, state = released('two-stage', 'detrex', 5)
    state = {n.replace('enc_output_norm', 'enc_outpout_norm'): t for n, t in state.items()}
    assert_same(converted(state, 'two-stage', 5).state, model.state_dict(), COUNTER)


def test_detrex_proposal_heads_cut_to_80_rows_keep_them():
    """Its converter cuts the official 91 rows of proposals to the first 80."""
    model, state = released('two-stage', 'detrex', 80)
    assert_same(converted(state, 'two-stage', 80).state, model.state_dict(), COUNTER)


@pytest.mark.parametrize('dialect', ['official', 'mmdet', 'transformers', 'detrex'])
def test_every_key_that_is_missing_or_left_over_is_listed(dialect):
    _, state = released('base', dialect, 5)
    gone = [n for n in state if 'sampling_offsets' in n][0]
    del state[gone]
    state['denoising.weight'] = torch.zeros(2)
    for target in (None, empty('base').state_dict()):
        with pytest.raises(ValueError, match='2 problems') as error:
            to_ours(source(state), target=target)
        assert 'missing: encoder.layers.0.self_attn.sampling_offsets.' in str(error.value)
        assert 'left over: denoising.weight' in str(error.value)
        assert '--allow-missing' in str(error.value)
        result = to_ours(source(state), target=target, allow_missing=True)
        assert len(result.problems.missing) == 1
        assert result.problems.unknown == ('denoising.weight',)
        assert len(result.problems.lines()) == 2


def test_weights_of_another_variant_or_size_say_what_they_are():
    _, state = released('refine', 'official', 5)
    with pytest.raises(ValueError, match='the weights are refine, the model is base'):
        converted(state, 'base', 5)
    wide = MODELS.build(bridge_config('refine', neck=dict(in_channels=[64, 256, 512])))
    with pytest.raises(ValueError, match=r'shape: neck\.convs\.0\.conv\.weight is \(64, 128'):
        to_ours(source(state), target=wide.state_dict())


def test_what_does_not_fit_a_model_is_told_by_name():
    _, state = released('refine', 'official', 5)
    wide = MODELS.build(bridge_config('base', neck=dict(in_channels=[64, 256, 512]))).state_dict()
    found = to_ours(source(state), target=wide, allow_missing=True).problems
    assert found.architecture == ('variant: the weights are refine, the model is base',)
    assert found.shapes == (
        OtherShape('neck.convs.0.conv.weight', (64, 128, 1, 1), (64, 64, 1, 1)),
    )
    assert found.extra and all('_branches.1.' in name for name in found.extra)
    assert not (found.unknown or found.missing or found.missing_parts)
    assert len(found.lines()) == 2 + len(found.extra)


def test_two_names_of_one_tensor_must_hold_the_same_numbers():
    _, state = released('refine', 'official', 5)
    alias = 'transformer.decoder.bbox_embed.0.layers.0.weight'
    state[alias] = state[alias] + 1
    with pytest.raises(ValueError, match='hold different numbers'):
        to_ours(source(state))


def test_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match='of no Deformable DETR'):
        to_ours(source({'conv1.weight': torch.zeros(1)}))
    with pytest.raises(ValueError, match='there is no level embedding'):
        to_ours(source({'conv1.weight': torch.zeros(1)}), 'official')


@pytest.mark.parametrize('dialect', ['hf', 'detr', ''])
def test_a_dialect_that_is_not_there_is_refused_with_those_that_are(dialect, tmp_path):
    model, state = released('base', 'official', 5)
    for call in (
        lambda: to_ours(source(state), dialect),
        lambda: export(model.state_dict(), dialect),
        lambda: write_checkpoint(tmp_path / 'x.pth', state, dialect, {}),
    ):
        with pytest.raises(ValueError, match='official, mmdet, transformers') as error:
            call()
        assert repr(dialect) in str(error.value)
    assert not list(tmp_path.iterdir())


def test_classes_move_by_name_and_unknown_ones_start_fresh():
    model, state = released('two-stage', 'official')
    wanted = ('zebra', 'platypus', 'Person')
    result = converted(state, 'two-stage', 3, classes=wanted)
    names = coco_rows()
    old, new = model.state_dict(), result.state
    weight, bias = 'bbox_head.cls_branches.1.weight', 'bbox_head.cls_branches.1.bias'
    for name in (weight, bias):
        assert torch.equal(new[name][0], old[name][names.index('zebra')])
        assert torch.equal(new[name][2], old[name][names.index('person')])
    # As a new head starts: probability 0.01.
    assert new[bias][1].sigmoid().item() == pytest.approx(0.01, rel=1e-3)
    assert 0 < new[weight][1].abs().max() <= 256**-0.5
    assert result.rows == (names.index('zebra'), None, names.index('person'))
    assert any(note.endswith('fresh: platypus') for note in result.notes)
    # D3.
    proposals = 'query_head.cls_branch.weight'
    assert torch.equal(new[proposals], old[proposals][:3])
    assert result.classes == wanted


def test_fresh_rows_are_the_same_every_time():
    _, state = released('base', 'official')
    one, other = (converted(state, 'base', 2, classes=('a', 'b')) for _ in range(2))
    assert_same(one.state, other.state)


def test_our_own_checkpoints_move_to_other_classes_by_the_names_they_hold():
    model = ours('base', 3)
    result = to_ours(
        source(model.state_dict(), dataset_meta=dict(classes=('cat', 'dog', 'cow'))),
        target=empty('base', 2).state_dict(),
        target_classes=('cow', 'horse'),
    )
    assert result.dialect == OURS
    assert result.rows == (2, None)
    old = model.bbox_head.cls_branches[0].weight
    assert torch.equal(result.state['bbox_head.cls_branches.0.weight'][0], old[2])


def test_the_same_classes_in_another_order_are_put_in_order():
    state = source(ours('base', 3).state_dict(), dataset_meta=dict(classes=('cat', 'dog', 'cow')))
    target = empty('base', 3).state_dict()
    assert to_ours(state, target=target, target_classes=('cow', 'cat', 'dog')).rows == (2, 0, 1)
    assert to_ours(state, target=target, target_classes=('cat', 'dog', 'cow')).rows is None


def test_as_many_classes_of_other_names_move_by_name_and_the_rest_starts_fresh():
    model = ours('base', 3)
    state = source(model.state_dict(), dataset_meta=dict(classes=('cat', 'dog', 'cow')))
    target = empty('base', 3).state_dict()
    result = to_ours(state, target=target, target_classes=('cow', 'cat', 'hound'))
    assert result.rows == (2, 0, None)
    assert result.classes == ('cow', 'cat', 'hound')
    assert any(note.endswith('fresh: hound') for note in result.notes)
    bias = 'bbox_head.cls_branches.0.bias'
    assert torch.equal(result.state[bias][:2], model.state_dict()[bias][[2, 0]])
    assert result.state[bias][2].sigmoid().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize('count', [3, 2])
def test_where_no_name_is_known_every_class_starts_fresh_and_that_is_said(count):
    state = source(ours('base', 3).state_dict(), dataset_meta=dict(classes=('cat', 'dog', 'cow')))
    target = empty('base', count).state_dict()
    result = to_ours(state, target=target, target_classes=('bolt', 'nut', 'cog')[:count])
    assert result.rows == (None,) * count
    (note,) = [note for note in result.notes if 'every class starts fresh' in note]
    assert '(cat, dog, cow)' in note
    kept = to_ours(
        state, target=empty('base', 3).state_dict(), classes='keep', target_classes=('a', 'b', 'c')
    )
    assert kept.rows is None


def test_rows_of_nobody_knows_which_classes_stay_where_they_are():
    """Where the file gives no names, position is all there is."""
    state = source(ours('base', 3).state_dict())
    result = to_ours(state, target=empty('base', 3).state_dict(), target_classes=('a', 'b', 'c'))
    assert result.rows is None
    assert result.classes == ('a', 'b', 'c')
    assert any('do not say which classes their 3 rows are' in note for note in result.notes)


def test_names_that_differ_in_case_alone_are_different_classes():
    letters = ('A', 'a', 'b')
    state = source(ours('base', 3).state_dict(), dataset_meta=dict(classes=letters))
    target = empty('base', 3).state_dict()
    assert to_ours(state, target=target, target_classes=letters).rows is None
    assert to_ours(state, target=target, target_classes=('a', 'A', 'B')).rows == (1, 0, 2)
    # Which of the two is meant cannot be told.
    mixed = to_ours(source(state.state, row_names=['Ab', 'aB', 'c']), classes=('AB', 'C'))
    assert mixed.rows == (None, 2)


@pytest.mark.parametrize(
    'meta',
    [
        dict(CLASSES=('cat', 'dog', 'cow')),
        dict(dataset_meta=dict(CLASSES=('cat', 'dog', 'cow'))),
        dict(dataset_meta=None, CLASSES=['cat', 'dog', 'cow']),
        dict(dataset_meta=None, row_names=['cat', 'dog', 'cow']),
        dict(dataset_meta=dict(classes=('cat', 'dog', 'cow')), row_names=['x', 'y', 'z']),
    ],
)
def test_class_names_are_found_in_the_meta_data_of_every_release(meta):
    result = to_ours(source(ours('base', 3).state_dict(), **meta), classes=('cow', 'cat'))
    assert result.rows == (2, 0)


@pytest.mark.parametrize('classes', [None, 7, ('cat',), 'cat', torch.zeros(3)])
def test_meta_data_that_name_no_class_for_each_row_are_no_names(classes):
    meta = dict(dataset_meta=dict(classes=classes))
    result = to_ours(source(ours('base', 3).state_dict(), **meta))
    assert result.classes is None


@pytest.mark.parametrize('rows', [80, 91])
def test_names_of_another_number_than_the_rows_do_not_make_them_coco(rows):
    state = ours('base', rows).state_dict()
    result = to_ours(source(state, dataset_meta=dict(classes=('bolt', 'nut', 'screw'))))
    assert (result.classes, result.rows) == (None, None)
    (warning,) = result.warnings
    assert f'names 3 classes, but its heads have {rows} rows' in warning
    assert to_ours(source(state)).classes == coco_classes()


def test_the_official_rows_are_known_whatever_the_gaps_are_called():
    """Some files of transformers have the names of the categories that COCO gave up."""
    names = ['N/A' if name is None else name for name in coco_rows()]
    names[12], names[83] = 'street sign', 'blender'
    model, state = released('base', 'transformers')
    result = to_ours(source(state, row_names=names))
    assert result.rows == OFFICIAL_TO_COCO
    assert result.classes == coco_classes()
    # Other 91 classes are no COCO.
    names[1] = 'human'
    assert to_ours(source(state, row_names=names)).rows is None


@pytest.mark.parametrize('shape', [(), (64,), (1, 4, 64)])
def test_a_level_embedding_of_another_shape_is_refused(shape):
    _, state = released('base', 'official')
    state['transformer.level_embed'] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r'expected \(levels, channels\)'):
        to_ours(source(state))


@pytest.mark.parametrize('dialect', ['official', 'transformers', 'mmdet'])
def test_tensors_that_cannot_be_what_their_names_say_are_listed(dialect):
    _, state = released('two-stage', dialect, 5)
    damaged = [n for n in state if 'pos_trans' in n and n.endswith('weight')]
    damaged += [n for n in state if 'encoder.layers.0' in n and 'sampling_offsets.bias' in n]
    for name in damaged:
        state[name] = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match='the file is damaged') as error:
        to_ours(source(state))
    assert str(error.value).count('expected') == len(damaged) == 3
    assert 'query_head.pos_trans_norm.weight is (1, 2, 3), expected 1 dimensions' in str(
        error.value
    )


@pytest.mark.parametrize('shape', [(), (64,)])
def test_a_neck_whose_biases_cannot_be_filled_in_is_damaged(shape):
    state = mmdets_own('base').state_dict()
    state['neck.convs.0.conv.weight'] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r'damaged.*\n  neck\.convs\.0\.conv\.weight is \('):
        to_ours(source(state))


@pytest.mark.parametrize(
    ('change', 'kind'),
    [
        (lambda tensor: tensor.int(), r'torch\.int32'),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), r'torch\.float8'),
        (lambda tensor: tensor.to(torch.complex64), r'torch\.complex64'),
        (lambda tensor: tensor.to_sparse(), 'sparse'),
        (lambda tensor: tensor.to('meta'), 'without data'),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), r'torch\.qint8'),
    ],
)
@pytest.mark.filterwarnings('ignore:.*quantiz:')
def test_tensors_that_are_no_plain_floats_are_listed(change, kind):
    _, state = released('base', 'official', 5)
    names = ('transformer.level_embed', 'transformer.encoder.layers.0.linear1.weight')
    for name in names:
        state[name] = change(state[name])
    with pytest.raises(ValueError, match=f'{names[0]} is {kind}.*(\n.*)*{names[1]} is {kind}'):
        to_ours(source(state))


@pytest.mark.parametrize('shape', [(), (7,), (1, 2, 3)])
def test_projections_of_transformers_that_cannot_be_joined_are_named(shape):
    _, state = released('base', 'transformers', 5)
    state['model.decoder.layers.0.self_attn.k_proj.weight'] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r'projections of model\.decoder\.layers\.0\.self_attn'):
        to_ours(source(state))


@pytest.mark.parametrize('name', ['cls_branches.0.bias', 'cls_branches.2.weight'])
def test_damaged_class_heads_are_refused(name):
    _, state = released('two-stage', 'mmdet')
    name = f'bbox_head.{name}'
    with pytest.raises(ValueError, match='the file is damaged'):
        to_ours(source({**state, name: torch.zeros(())}))


def test_class_heads_of_different_sizes_are_refused():
    _, state = released('refine', 'official')
    for part in ('weight', 'bias'):
        state[f'class_embed.1.{part}'] = state[f'class_embed.1.{part}'][:80]
    with pytest.raises(ValueError, match=r'different numbers of rows, \[80, 91\]'):
        to_ours(source(state))


def test_classes_that_cannot_be_mapped_say_why():
    _, state = released('base', 'official', 20)
    with pytest.raises(ValueError, match='20 class rows and do not say of which classes'):
        converted(state, 'base', 2, classes=('a', 'b'))
    with pytest.raises(ValueError, match='unique, got cat'):
        converted(released('base', 'official')[1], 'base', 2, classes=('cat', 'cat'))
    named = to_ours(source(state), classes=tuple(f'class {i}' for i in range(20)))
    assert named.rows is None
    assert named.classes[3] == 'class 3'


def test_rows_can_be_left_as_they_are():
    model, state = released('two-stage', 'official')
    result = to_ours(source(state), classes='keep')
    assert_same(result.state, model.state_dict(), COUNTER)
    assert result.classes[1] == 'person'
    assert result.classes[12] is None


def test_a_config_is_not_changed_by_another_number_of_rows():
    config = Config(dict(model=bridge_config('two-stage'))).model
    before = config.to_dict()
    changed = with_rows(config, 9)
    assert config.to_dict() == before
    assert (changed['bbox_head']['num_classes'], changed['query_head']['num_classes']) == (9, 9)
