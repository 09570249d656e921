"""Weights behind prefixes, as Lightning, DDP, torch.compile and FSDP leave them."""

import pytest
import torch
from bridge_cases import KINDS, assert_same, empty, ours

from ddetr_plugin.checkpoints import (
    DIALECTS,
    OURS,
    CheckpointFileError,
    describe,
    export,
    read_checkpoint,
    to_ours,
    unwrap,
)

COUNTER = ('num_batches_tracked',)
ALL = (OURS, *DIALECTS)


def written(model, dialect):
    """The weights of one of our models by the names of a dialect."""
    state = model.state_dict()
    return dict(state) if dialect == OURS else export(state, dialect)


def lightning(state, prefix='model.', **others):
    """What Lightning saves of a module that holds the detector under an attribute."""
    state = {f'{prefix}{name}': tensor for name, tensor in state.items()}
    return {
        'state_dict': {**state, **others},
        'epoch': 3,
        'global_step': 100,
        'pytorch-lightning_version': '2.5.0',
        'optimizer_states': [{'state': {0: {'step': torch.ones(1)}}}],
        'callbacks': {'ModelCheckpoint': {'best_model_score': torch.ones(1)}},
        'hyper_parameters': {'lr': 1e-4},
    }


@pytest.fixture(scope='module')
def models():
    return {kind: ours(kind) for kind in KINDS}


@pytest.mark.parametrize('prefix', ['model.', 'detector.', 'model._orig_mod.', 'net.model.'])
@pytest.mark.parametrize('dialect', ALL)
def test_every_dialect_is_recognised_behind_a_prefix(models, dialect, prefix):
    for kind, model in models.items():
        if prefix != 'model.' and kind != 'base':
            continue
        source = unwrap(lightning(written(model, dialect), prefix))
        result = to_ours(source, target=model.state_dict())
        assert (result.dialect, result.architecture.variant) == (dialect, kind)
        assert_same(result.state, model.state_dict(), COUNTER)
        shown = prefix.replace('_orig_mod.', '')
        report = '\n'.join(describe(result, source))
        assert f'note: {shown} was stripped from {len(source.state)} names' in report
        assert 'not converted: epoch, global_step, pytorch-lightning_version' in report


@pytest.mark.parametrize('dialect', ALL)
def test_what_ddp_compile_and_fsdp_leave_is_stripped_and_said(models, dialect):
    model = models['refine']
    state = written(model, dialect)
    wrapped = {}
    for name, tensor in state.items():
        first, _, rest = name.partition('.')
        inner = f'{first}._fsdp_wrapped_module._orig_mod.{rest}' if rest else name
        wrapped[f'module.{inner}'] = tensor
    source = unwrap({'model': wrapped})
    assert_same(source.state, state)
    assert f'module. was stripped from {len(state)} names' in source.notes
    assert any(note.startswith('_fsdp_wrapped_module._orig_mod. was') for note in source.notes)
    assert unwrap({'model': state}).notes == []


@pytest.mark.parametrize('dialect', ALL)
def test_load_state_dict_takes_weights_behind_a_prefix(models, dialect):
    model, other = models['base'], empty('base')
    other.load_state_dict(lightning(written(model, dialect))['state_dict'], strict=True)
    assert_same(other.state_dict(), model.state_dict(), COUNTER)


def test_what_is_missing_behind_a_prefix_is_said_as_ever(models):
    state = written(models['base'], OURS)
    del state['encoder.level_embed'], state['backbone.conv1.weight']
    with pytest.raises(RuntimeError, match=r'Missing key.*encoder\.level_embed'):
        empty('base').load_state_dict(state)
    state = written(models['base'], OURS)
    del state['backbone.conv1.weight']
    prefixed = lightning(state)['state_dict']
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "backbone.conv1.wei'):
        empty('base').load_state_dict(prefixed)
    missing, _ = empty('base').load_state_dict(prefixed, strict=False)
    assert missing == ['backbone.conv1.weight']


def test_what_lies_beside_the_detector_is_named(models):
    content = lightning(
        written(models['base'], 'official'), **{'criterion.empty_weight': torch.ones(3)}
    )
    source = unwrap(content)
    assert 'criterion.empty_weight (not below model.)' in source.not_converted
    assert not to_ours(source).problems


@pytest.mark.parametrize('dialect', ALL)
@pytest.mark.parametrize('average', ['model_ema.', 'ema.module.', 'teacher.', 'model.ema.'])
def test_an_average_beside_the_model_is_left_unless_asked_for(models, dialect, average):
    state = written(models['base'], dialect)
    second = {f'{average}{name}': tensor + 1 for name, tensor in state.items()}
    for prefix in ('model.', ''):
        content = lightning(state, prefix, **second)
        source = unwrap(content)
        assert_same(source.state, state)
        assert f'{average}* (another model; --ema takes it instead)' in source.not_converted
        taken = unwrap(content, ema=True)
        assert_same(taken.state, {name: tensor + 1 for name, tensor in state.items()})
        assert f'{average} was stripped from {len(state)} names' in taken.notes
    with pytest.raises(CheckpointFileError, match='no average'):
        unwrap(lightning(state), ema=True)


def test_of_two_models_nobody_is_preferred(models):
    state = written(models['base'], 'transformers')
    content = lightning(state, 'one.', **{f'two.{name}': t for name, t in state.items()})
    with pytest.raises(CheckpointFileError, match="2 models, whose names begin with 'one.' and 't"):
        unwrap(content)
    with pytest.raises(RuntimeError, match='2 models'):
        empty('base').load_state_dict(content['state_dict'])


def test_weights_of_other_networks_keep_their_names():
    state = {'model.conv.weight': torch.ones(1), 'model.level.weight': torch.ones(1)}
    source = unwrap({'state_dict': state})
    assert_same(source.state, state)
    assert source.notes == []


@pytest.mark.parametrize('key', ['ema', 'ema_state_dict', 'model_ema'])
@pytest.mark.parametrize('nested', ['module', 'model', None])
def test_a_file_with_nothing_but_an_average_says_how_to_take_it(models, tmp_path, key, nested):
    state = written(models['base'], 'official')
    average = {'module.' * (key == 'ema_state_dict') + name: t for name, t in state.items()}
    average = {nested: average, 'updates': 7} if nested else {**average, 'steps': torch.ones(1)}
    file = tmp_path / 'x.pth'
    torch.save({key: average, 'epoch': 3}, file)
    with pytest.raises(CheckpointFileError, match=rf'their average \(EMA\), {key}; .*--ema takes'):
        read_checkpoint(file)
    assert_same(read_checkpoint(file, ema=True).state, state)
    torch.save({'model': state, key: average}, file)
    assert f'{key} (an average' in read_checkpoint(file).not_converted[0]
