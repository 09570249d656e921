"""Files of every kind, and what is refused."""

import argparse
import json
import os
import signal
import sys

import pytest
import torch
from bridge_cases import assert_same, ours
from forked import run_python

from ddetr_plugin.checkpoints import (
    CheckpointFileError,
    export,
    read_checkpoint,
    to_ours,
    unwrap,
    write_checkpoint,
)
from ddetr_plugin.checkpoints.convert_in_place import load_from_local
from ddetr_plugin.checkpoints.files.writing import check_destination

STATE = {'transformer.level_embed': torch.arange(4.0)[None]}


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    'content',
    [
        STATE,
        {'model': STATE},
        {'state_dict': STATE, 'meta': {}},
        {'model': {f'module.{k}': v for k, v in STATE.items()}},
        {'state_dict': {f'module._orig_mod.{k}': v for k, v in STATE.items()}},
        {'model': STATE, 'optimizer': {'state': {0: {'step': torch.ones(1)}}}, 'epoch': 3},
        {'model': {**STATE, 'ema_level_embed': torch.ones(1, 4), 'steps': torch.ones(1)}},
    ],
)
def test_weights_are_found_whatever_they_are_wrapped_in(tmp_path, content):
    found = read_checkpoint(saved(tmp_path / 'x.pth', content))
    assert_same(found.state, STATE)


def test_what_is_not_converted_is_named(tmp_path):
    content = {'model': STATE, 'optimizer': {}, 'lr_scheduler': {}, 'ema': STATE}
    left = ' '.join(read_checkpoint(saved(tmp_path / 'x.pth', content)).not_converted)
    for word in ('optimizer', 'lr_scheduler', '--ema'):
        assert word in left


@pytest.mark.parametrize('key', ['ema', 'model_ema', 'ema_state', 'ema_state_dict'])
@pytest.mark.parametrize('nested', [True, False])
def test_an_average_is_taken_when_asked_for(key, nested):
    average = {f'module.{k}': v + 1 for k, v in STATE.items()}
    content = {'model': STATE, key: {'model': average} if nested else average}
    assert_same(unwrap(content).state, STATE)
    assert_same(unwrap(content, ema=True).state, {k: v + 1 for k, v in STATE.items()})
    with pytest.raises(ValueError, match='no average'):
        unwrap({'model': STATE}, ema=True)


def test_the_weights_of_a_runner_with_ema_are_the_average_already():
    content = {'state_dict': STATE, 'ema_state_dict': {k: v + 1 for k, v in STATE.items()}}
    source = unwrap(content, ema=True)
    assert_same(source.state, STATE)
    assert 'average already' in source.not_converted[0]


@pytest.mark.parametrize('dilation', [True, False])
def test_an_official_file_says_whether_its_backbone_is_dilated(tmp_path, dilation):
    args = argparse.Namespace(dilation=dilation, lr=2e-4, output_dir='x')
    source = read_checkpoint(saved(tmp_path / 'x.pth', {'model': STATE, 'args': args}))
    assert source.dilated is dilation
    assert read_checkpoint(saved(tmp_path / 'y.pth', {'model': STATE})).dilated is None
    cfg = f"backbone=dict(dilations=(1, 1, 1, {2 if dilation else 1}), type='ResNet')"
    content = {'state_dict': STATE, 'meta': {'cfg': cfg}}
    assert read_checkpoint(saved(tmp_path / 'z.pth', content)).dilated is dilation


@pytest.mark.parametrize(
    ('cfg', 'dilated'),
    [
        ("backbone=dict(dilations=(\n    1,\n    1,\n    1,\n    2,\n), type='ResNet')", True),
        ("backbone=dict(dilations=[1, 1, 2, 4], type='ResNet')", True),
        ("backbone=dict(depth=50, type='ResNet')", False),
        ("backbone=dict(depth=50, type='mmdet.ResNet')", False),
        ("backbone=dict(type='SwinTransformer')", None),
        (None, None),
    ],
)
def test_the_config_in_a_file_says_whether_its_backbone_is_dilated(cfg, dilated):
    assert unwrap({'state_dict': STATE, 'meta': {'cfg': cfg}}).dilated is dilated


def test_a_python_that_has_loaded_nothing_else_reads_official_files(tmp_path):
    file = saved(tmp_path / 'x.pth', {'model': STATE, 'args': argparse.Namespace(dilation=True)})
    code = (
        'from ddetr_plugin.checkpoints import read_checkpoint\n'
        f'print(read_checkpoint({str(file)!r}).dilated)'
    )
    done = run_python(code)
    assert done.stdout == 'True\n', done.stderr


@pytest.mark.parametrize(('function', 'name'), [(os.system, 'system'), (eval, 'eval')])
def test_a_pickle_that_wants_to_run_something_is_refused_by_name(tmp_path, function, name):
    mark = tmp_path / 'ran'
    command = f'touch {mark}' if function is os.system else f'open({str(mark)!r}, "w")'

    class Attack:
        def __reduce__(self):
            return function, (command,)

    file = saved(tmp_path / 'x.pth', {'model': STATE, 'args': Attack()})
    with pytest.raises(ValueError, match=rf'asks to run \S*{name}.*--trust'):
        read_checkpoint(file)
    assert not mark.exists()
    assert_same(read_checkpoint(file, trust=True).state, STATE)
    assert mark.exists()


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'PK\x03\x04 broken'])
def test_a_file_that_is_no_checkpoint_says_so(tmp_path, content):
    file = tmp_path / 'x.pth'
    file.write_bytes(content)
    with pytest.raises(ValueError, match='x.pth is not'):
        read_checkpoint(file)


def test_a_trusted_file_says_which_module_it_needs(tmp_path, monkeypatch):
    code = 'class Thing: pass'
    (tmp_path / 'somewhere_else.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import somewhere_else

    file = saved(tmp_path / 'x.pth', {'model': STATE, 'args': somewhere_else.Thing()})
    monkeypatch.delitem(sys.modules, 'somewhere_else')
    (tmp_path / 'somewhere_else.py').unlink()
    with pytest.raises(ValueError, match='the module somewhere_else, which is not installed'):
        read_checkpoint(file, trust=True)


def test_missing_and_empty_files_say_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match='x.pth does not exist'):
        read_checkpoint(tmp_path / 'x.pth')
    with pytest.raises(FileNotFoundError, match='neither model.safetensors'):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match='holds a list, expected a dict'):
        read_checkpoint(saved(tmp_path / 'x.pth', [torch.ones(1)]))
    empty = {name: tensor.to('meta') for name, tensor in STATE.items()}
    for content, found in (({'epoch': 3}, 'epoch'), ({'model': empty}, 'model')):
        with pytest.raises(ValueError, match=f'holds no weights.*found {found}'):
            read_checkpoint(saved(tmp_path / 'x.pth', content))


def test_a_folder_of_transformers_is_read_with_its_class_names(tmp_path):
    state = export(ours('base', 3).state_dict(), 'transformers')
    torch.save(state, tmp_path / 'pytorch_model.bin')
    labels = {'0': 'N/A', '1': 'cat', '2': 'dog'}
    config = {'model_type': 'deformable_detr', 'id2label': labels, 'dilation': True}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    source = read_checkpoint(tmp_path)
    settings = {'model_type': 'deformable_detr', 'dilation': True}
    assert source.meta == {'row_names': [None, 'cat', 'dog'], 'settings': settings}
    assert source.dilated
    assert to_ours(source, classes=('dog', 'cow')).rows == (2, None)


TRANSFORMERS = {'model.level_embed': torch.zeros(4, 8)}


def folder(path, config, state=TRANSFORMERS):
    torch.save(state, path / 'pytorch_model.bin')
    (path / 'config.json').write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('[]', 'expected an object, got a list'),
        ('{', 'expected JSON'),
        ({'model_type': 'deformable_detr', 'id2label': [1]}, 'id2label to be an object'),
        ({'model_type': 'deformable_detr', 'id2label': {'cat': 1}}, 'id2label to be an object'),
        ({'model_type': 'deformable_detr', 'id2label': {'-2': 'x'}}, 'id2label to be an object'),
        ({'model_type': 'deformable_detr', 'id2label': {'9999999999': 'x'}}, 'id2label to be an'),
        ({'model_type': 'deformable_detr', 'backbone_config': 7}, 'backbone_config to be an'),
    ],
)
def test_a_damaged_config_of_transformers_is_named(tmp_path, config, message):
    with pytest.raises(ValueError, match=rf'config\.json is .*{message}'):
        read_checkpoint(folder(tmp_path, config))


@pytest.mark.parametrize('config', [{'model_type': 'detr'}, {}, {'id2label': {'0': 'cat'}}])
def test_the_config_of_another_model_says_nothing(tmp_path, config):
    source = read_checkpoint(folder(tmp_path, config))
    assert (source.meta, source.dilated) == ({}, None)


def test_a_config_beside_other_dialects_says_nothing(tmp_path):
    config = {'model_type': 'deformable_detr', 'id2label': {'0': 'cat'}, 'dilation': True}
    folder(tmp_path, config)
    for content in (STATE, {'state_dict': STATE, 'meta': {'dataset_meta': None}}):
        source = read_checkpoint(saved(tmp_path / 'x.pth', content))
        assert 'row_names' not in source.meta
        assert source.dilated is None
    folder(tmp_path, '[]')
    assert_same(read_checkpoint(tmp_path / 'x.pth').state, STATE)


def test_meta_data_without_classes_leave_the_word_to_the_config(tmp_path):
    folder(tmp_path, {'model_type': 'deformable_detr', 'id2label': {'0': 'cat'}})
    content = {'state_dict': TRANSFORMERS, 'meta': {'dataset_meta': None}}
    source = read_checkpoint(saved(tmp_path / 'x.pth', content))
    assert source.meta['row_names'] == ['cat']


@pytest.mark.parametrize(
    ('config', 'dilated'),
    [
        ({'dilation': True}, True),
        ({'dilation': False}, False),
        ({'dilation': True, 'use_timm_backbone': True}, True),
        # Newer releases write what timm gets; their own ResNet cannot be dilated.
        ({'dilation': True, 'backbone_config': {'model_type': 'timm_backbone'}}, True),
        ({'backbone_config': {'model_type': 'timm_backbone', 'output_stride': 16}}, True),
        ({'backbone_config': {'model_type': 'timm_backbone', 'output_stride': 32}}, False),
        ({'dilation': True, 'use_timm_backbone': False}, False),
        ({'dilation': True, 'backbone_config': {'model_type': 'resnet'}}, False),
    ],
)
def test_transformers_dilates_backbones_of_timm_only(tmp_path, config, dilated):
    source = read_checkpoint(folder(tmp_path, {'model_type': 'deformable_detr', **config}))
    assert source.dilated is dilated


@pytest.mark.parametrize(
    ('index', 'message'),
    [
        ('{}', 'names no files'),
        ('[]', 'names no files'),
        ('{"weight_map": {}}', 'names no files'),
        ('{"weight_map": ["a.bin"]}', 'names no files'),
        ('{"weight_map"', 'expected JSON'),
        ('{"weight_map": {"x": "../a.bin"}}', r'outside its folder: \.\./a\.bin'),
        ('{"weight_map": {"x": "absent.bin"}}', r'absent\.bin does not exist'),
    ],
)
def test_a_damaged_index_is_named(tmp_path, index, message):
    (tmp_path / 'pytorch_model.bin.index.json').write_text(index)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_checkpoint(tmp_path)


def test_a_folder_with_several_files_is_read_whole(tmp_path):
    state = export(ours('base').state_dict(), 'transformers')
    names = sorted(state)
    parts = {'a.bin': names[::2], 'b.bin': names[1::2]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, tmp_path / file)
    index = {'weight_map': {name: file for file, part in parts.items() for name in part}}
    (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps(index))
    assert_same(read_checkpoint(tmp_path).state, state)


def test_the_index_of_several_files_is_read_like_their_folder(tmp_path):
    state = export(ours('base').state_dict(), 'transformers')
    files = [f'pytorch_model-0000{k}-of-00002.bin' for k in (1, 2)]
    places = {name: files[k % 2] for k, name in enumerate(state)}
    for file in files:
        torch.save({n: t for n, t in state.items() if places[n] == file}, tmp_path / file)
    index = tmp_path / 'pytorch_model.bin.index.json'
    index.write_text(json.dumps({'weight_map': places}))
    (tmp_path / 'config.json').write_text(
        json.dumps({'model_type': 'deformable_detr', 'dilation': True})
    )
    for place in (index, tmp_path):
        source = read_checkpoint(place)
        assert_same(source.state, state)
        assert source.dilated
        assert_same(load_from_local(str(place), 'cpu')['state_dict'], state)
    for read in (read_checkpoint, lambda file: load_from_local(str(file), 'cpu')):
        with pytest.raises(
            CheckpointFileError, match=f'one of 2 files.* name their folder {tmp_path}'
        ):
            read(tmp_path / files[0])
    with pytest.raises(ValueError, match='names no files.*name the folder'):
        read_checkpoint(tmp_path / 'config.json')
    with pytest.raises(FileNotFoundError, match='absent.json does not exist'):
        read_checkpoint(tmp_path / 'absent.json')


def test_a_folder_of_parts_without_their_index_says_so(tmp_path):
    torch.save(STATE, tmp_path / 'pytorch_model-00001-of-00002.bin')
    with pytest.raises(FileNotFoundError, match='not their index'):
        read_checkpoint(tmp_path)


def test_a_single_file_that_is_numbered_is_read(tmp_path):
    file = saved(tmp_path / 'pytorch_model-00001-of-00001.bin', STATE)
    assert_same(read_checkpoint(file).state, STATE)


@pytest.mark.parametrize('differs', [True, False])
def test_names_that_become_one_must_hold_the_same(tmp_path, differs):
    name = 'transformer.level_embed'
    both = {**STATE, f'module.{name}': STATE[name] + differs}
    state = export(ours('base').state_dict(), 'transformers')
    one = 'model.encoder.layers.0.fc1.bias'
    synonym = one.replace('fc1', 'mlp.fc1')
    renamed = unwrap({**state, synonym: state[one] + differs})
    for file in ('a.bin', 'b.bin'):
        torch.save({**state, one: state[one] + (differs and file == 'b.bin')}, tmp_path / file)
    index = {'weight_map': {one: 'a.bin', 'x': 'b.bin'}}
    (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps(index))
    if differs:
        with pytest.raises(ValueError, match=f'{name} and module.{name} are two names'):
            unwrap(both)
        with pytest.raises(ValueError, match=f'{one} and {synonym} are two names'):
            to_ours(renamed)
        with pytest.raises(ValueError, match=f'{one} is in b.bin and in another file'):
            read_checkpoint(tmp_path)
    else:
        assert_same(unwrap(both).state, STATE)
        assert not to_ours(renamed).problems
        assert_same(read_checkpoint(tmp_path).state, state)


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_a_disk_that_is_full_leaves_the_older_file_alone(tmp_path, name):
    if name == 'x.safetensors':
        pytest.importorskip('safetensors', reason='safetensors is not installed')
    resource = pytest.importorskip('resource', reason='needs limits of files as Unix has them')
    file = tmp_path / name
    write_checkpoint(file, STATE, 'transformers', {})
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f'{name} cannot be written'):
            write_checkpoint(file, {'x': torch.ones(10_000)}, 'transformers', {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == before


def test_a_place_where_nothing_can_be_written_is_named_at_once(tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(OSError, match=r'x\.pth cannot be written'):
        check_destination(tmp_path / 'file' / 'x.pth', 'official')
    for device in filter(os.path.exists, ('/dev/null', '/dev/full')):
        with pytest.raises(ValueError, match='no regular file'):
            check_destination(device, 'official')
    if os.path.exists('/proc/self'):
        with pytest.raises(OSError, match=r'x\.pth cannot be written'):
            check_destination('/proc/x.pth', 'official')


def test_a_link_is_written_through(tmp_path):
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'x.pth').symlink_to(tmp_path / 'deep' / 'y.pth')
    write_checkpoint(tmp_path / 'x.pth', STATE, 'official', {})
    assert (tmp_path / 'x.pth').is_symlink()
    assert_same(read_checkpoint(tmp_path / 'deep' / 'y.pth').state, STATE)


def test_safetensors_hold_the_same_bits(tmp_path):
    pytest.importorskip('safetensors', reason='safetensors is not installed')
    model = ours('refine')
    state = export(model.state_dict(), 'transformers')
    file = tmp_path / 'model.safetensors'
    write_checkpoint(file, state, 'transformers', {})
    assert_same(read_checkpoint(file).state, state)
    assert_same(read_checkpoint(tmp_path).state, state)
    file.write_bytes(b'broken')
    with pytest.raises(ValueError, match='no readable safetensors'):
        read_checkpoint(file)


def test_safetensors_are_written_for_transformers_only(tmp_path):
    with pytest.raises(ValueError, match='for --to transformers only'):
        write_checkpoint(tmp_path / 'x.safetensors', STATE, 'official', {})


@pytest.mark.parametrize('dilated', [True, False, None])
@pytest.mark.parametrize('dialect', ['ddetr_plugin', 'mmdet', 'official'])
def test_what_is_written_says_whether_the_backbone_is_dilated(tmp_path, dialect, dilated):
    meta = {} if dilated is None else {'dilation': dilated}
    write_checkpoint(tmp_path / 'x.pth', STATE, dialect, meta)
    assert read_checkpoint(tmp_path / 'x.pth').dilated is dilated


@pytest.mark.parametrize('dialect', ['ddetr_plugin', 'mmdet', 'official', 'transformers'])
def test_what_is_written_is_read_again(tmp_path, dialect):
    write_checkpoint(tmp_path / 'deep' / 'x.pth', STATE, dialect, {'conversion': {}})
    assert_same(read_checkpoint(tmp_path / 'deep' / 'x.pth').state, STATE)
