"""Foreign weights through mmengine: load_from, init_cfg, load_state_dict; resuming as before."""

import argparse
import copy
import json
import pickle

import pytest
import torch
from bridge_cases import assert_same, bridge_config, empty, ours
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.runner import Runner, load_checkpoint
from test_mmdet_2 import recorded

from ddetr_plugin.checkpoints import export, write_checkpoint
from ddetr_plugin.checkpoints.class_rows.rows import coco_rows
from ddetr_plugin.cli import run_command
from ddetr_plugin.datasets.class_names import dataset_classes
from ddetr_plugin.engine import ForeignCheckpointHook
from ddetr_plugin.registry import MODELS

COUNTER = ('num_batches_tracked',)
DIALECTS = ('official', 'mmdet', 'transformers', 'detrex')
HOOK = dict(type='ddetr_plugin.ForeignCheckpointHook')


def noisy(config):
    """A model of a config with random weights."""
    torch.manual_seed(7)
    model = MODELS.build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def loaded(path, **changes):
    """(runner after load_or_resume, its config before)."""
    config = Config.fromfile(path)
    config.merge_from_dict(changes)
    before = copy.deepcopy(config.to_dict())
    runner = Runner.from_cfg(config)
    runner.call_hook('before_run')
    runner.load_or_resume()
    assert runner.cfg.to_dict() == before
    return runner


def released(state, dialect):
    """A file as the programs of a dialect write it."""
    if dialect == 'official':
        args = argparse.Namespace(dilation=False)
        return {'model': state, 'optimizer': {'state': {}}, 'epoch': 49, 'args': args}
    if dialect == 'mmdet':
        return {'state_dict': state, 'meta': {'epoch': 50}}
    return state if dialect == 'transformers' else {'model': state, 'iteration': 10}


@pytest.mark.parametrize('dialect', DIALECTS)
@pytest.mark.parametrize(
    'hooks',
    [[], [HOOK], [dict(type='EMAHook'), HOOK], [dict(type='EMAHook')]],
    ids=['bare', 'hook', 'hook and EMA', 'EMA'],
)
def test_load_from_takes_a_foreign_file_as_it_is(tiny_job, tmp_path, dialect, hooks):
    path = tiny_job(custom_hooks=hooks)
    model = noisy(Config.fromfile(path).model)
    file = tmp_path / 'foreign.pth'
    torch.save(released(export(model.state_dict(), dialect), dialect), file)
    runner = loaded(path, load_from=str(file))
    assert_same(runner.model.state_dict(), model.state_dict(), COUNTER)
    assert runner.iter == 0
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            assert_same(hook.ema_model.module.state_dict(), model.state_dict(), COUNTER)


def test_load_from_takes_safetensors_and_folders(tiny_job, tmp_path):
    safetensors = pytest.importorskip('safetensors.torch', reason='safetensors is not installed')
    path = tiny_job()
    model = noisy(Config.fromfile(path).model)
    state = {k: v.clone() for k, v in export(model.state_dict(), 'transformers').items()}
    safetensors.save_file(state, tmp_path / 'model.safetensors')
    for place in (tmp_path / 'model.safetensors', tmp_path):
        changes = dict(load_from=str(place), experiment_name=place.name)
        runner = loaded(path, **changes)
        assert_same(runner.model.state_dict(), model.state_dict(), COUNTER)


def official_coco_file(path, file):
    """An official file with 91 rows that fits the config otherwise; returns its weights."""
    model = Config.fromfile(path).model
    model.bbox_head.num_classes = 91
    state = export(noisy(model).state_dict(), 'official')
    torch.save(released(state, 'official'), file)
    return state


def with_classes(path, classes):
    config = Config.fromfile(path)
    config.model.bbox_head.num_classes = len(classes)
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.metainfo.classes = classes
    config.dump(path)
    return path


def test_load_from_moves_rows_to_the_classes_of_the_dataset(tiny_job, tmp_path):
    classes = ('zebra', 'bolt', 'person')
    path = with_classes(tiny_job(log_level='INFO'), classes)
    state = official_coco_file(path, tmp_path / 'official.pth')
    runner = loaded(path, load_from=str(tmp_path / 'official.pth'))
    new = runner.model.bbox_head.cls_branches[0].weight
    old = state['class_embed.0.weight']
    assert torch.equal(new[0], old[coco_rows().index('zebra')])
    assert torch.equal(new[2], old[coco_rows().index('person')])
    log = next(tmp_path.glob('work/*/*.log')).read_text()
    assert 'fresh: bolt' in log
    assert 'written by: official' in log


def test_our_own_weights_move_to_other_classes_too(tiny_job, tmp_path):
    path = with_classes(tiny_job(), ('bar', 'square'))
    config = Config.fromfile(path).model
    config.bbox_head.num_classes = 3
    old = noisy(config)
    meta = {'dataset_meta': {'classes': ('square', 'bar', 'post')}}
    torch.save({'state_dict': old.state_dict(), 'meta': meta}, tmp_path / 'ours.pth')
    runner = loaded(path, load_from=str(tmp_path / 'ours.pth'))
    new, before = runner.model.bbox_head.cls_branches[0], old.bbox_head.cls_branches[0]
    assert torch.equal(new.weight, before.weight[[1, 0]])
    assert torch.equal(runner.model.encoder.level_embed, old.encoder.level_embed)


def test_as_many_classes_of_other_names_start_fresh_with_a_warning(tiny_job, tmp_path):
    path = with_classes(tiny_job(), ('bolt', 'nut', 'cog'))
    old = noisy(Config.fromfile(path).model)
    meta = {'dataset_meta': {'CLASSES': ('square', 'bar', 'post')}}
    torch.save({'state_dict': old.state_dict(), 'meta': meta}, tmp_path / 'ours.pth')
    runner = loaded(path, load_from=str(tmp_path / 'ours.pth'))
    bias = runner.model.bbox_head.cls_branches[0].bias
    torch.testing.assert_close(bias.sigmoid(), torch.full((3,), 0.01), rtol=1e-3, atol=0)
    # Nothing below a warning is in this log.
    log = next(tmp_path.glob('work/*/*.log')).read_text()
    assert 'none of the wanted classes is among those of the weights (square, bar, post)' in log


@pytest.mark.parametrize(
    ('form', 'dilated'),
    [('official', True), ('official', False), ('ours', True), ('transformers', True)],
)
def test_load_from_warns_of_a_backbone_that_is_dilated_otherwise(tiny_job, tmp_path, form, dilated):
    path = tiny_job()
    state = noisy(Config.fromfile(path).model).state_dict()
    file = tmp_path / 'weights.bin'
    if form == 'ours':
        write_checkpoint(file, state, 'ddetr_plugin', {'dilation': dilated})
    elif form == 'official':
        content = released(export(state, 'official'), 'official')
        content['args'].dilation = dilated
        torch.save(content, file)
    else:
        write_checkpoint(file, export(state, 'transformers'), 'transformers', {})
        config = {'model_type': 'deformable_detr', 'dilation': dilated}
        (tmp_path / 'config.json').write_text(json.dumps(config))
    loaded(path, load_from=str(file))
    # Nothing below a warning is in this log.
    log = next(tmp_path.glob('work/*/*.log')).read_text()
    assert ('the file is of a dilated backbone (DC5)' in log) == dilated


def test_the_test_tool_takes_a_folder_of_transformers(tiny_job, tmp_path, capsys):
    path = tiny_job()
    model = noisy(Config.fromfile(path).model)
    found = []
    for name in ('theirs', 'ours'):
        (tmp_path / name).mkdir()
    write_checkpoint(
        tmp_path / 'theirs' / 'pytorch_model.bin',
        export(model.state_dict(), 'transformers'),
        'transformers',
        {},
    )
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'ours' / 'x.pth')
    for place in (tmp_path / 'theirs', tmp_path / 'ours' / 'x.pth'):
        results = tmp_path / f'{place.stem}.pkl'
        run_command(
            'test',
            [str(path), str(place), '--out', str(results), '--cfg-options']
            + [f'experiment_name={place.stem}', f'work_dir={tmp_path / place.stem}'],
        )
        found.append([r['pred_instances']['scores'] for r in pickle.loads(results.read_bytes())])
    assert len(found[0]) == 8
    assert all(map(torch.equal, *found))


def test_our_own_checkpoint_is_not_touched(tiny_job, tmp_path):
    """Neither when resuming, nor as load_from with the classes it was trained on."""
    path = tiny_job(train_cfg=dict(max_epochs=1, val_begin=2))
    Runner.from_cfg(Config.fromfile(path)).train()
    file = tmp_path / 'work' / 'epoch_1.pth'
    wanted = torch.load(file)['state_dict']
    for resume in (True, False):
        config = Config.fromfile(path)
        config.update(load_from=str(file), resume=resume, experiment_name=f'again-{resume}')
        runner = Runner.from_cfg(config)
        seen = []
        hook = next(h for h in runner.hooks if isinstance(h, ForeignCheckpointHook))
        original = hook.after_load_checkpoint

        def watch(runner, checkpoint, original=original, seen=seen):
            before = checkpoint['state_dict']
            original(runner, checkpoint)
            seen.append(checkpoint['state_dict'] is before)

        hook.after_load_checkpoint = watch
        runner.train_loop  # noqa: B018  resuming reads its state
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        runner.load_or_resume()
        assert seen == [True]
        assert_same(runner.model.state_dict(), wanted)


def test_a_foreign_file_that_does_not_fit_stops_the_run(tiny_job, tmp_path):
    path = tiny_job()
    state = export(noisy(Config.fromfile(path).model).state_dict(), 'official')
    gone = 'transformer.encoder.layers.0.linear1.bias'
    del state[gone]
    torch.save({'model': state}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r'missing: encoder\.layers\.0\.ffn\.layers\.0\.0\.bias'):
        loaded(path, load_from=str(tmp_path / 'x.pth'))
    hooks = [dict(type='ddetr_plugin.ForeignCheckpointHook', allow_missing=True)]
    runner = loaded(
        path, load_from=str(tmp_path / 'x.pth'), custom_hooks=hooks, experiment_name='lenient'
    )
    level_embed = runner.model.encoder.level_embed
    assert torch.equal(level_embed, state['transformer.level_embed'])


@pytest.mark.parametrize('dialect', DIALECTS)
def test_foreign_weights_cannot_be_resumed_from(tiny_job, tmp_path, dialect):
    path = tiny_job()
    state = export(noisy(Config.fromfile(path).model).state_dict(), dialect)
    torch.save(released(state, dialect), tmp_path / 'x.pth')
    with pytest.raises(ValueError, match='cannot resume .*it is not a checkpoint of a training'):
        loaded(path, load_from=str(tmp_path / 'x.pth'), resume=True)


@pytest.mark.parametrize('said', [False, None])
def test_load_from_asks_the_folder_whether_its_model_refines(tiny_job, tmp_path, said):
    path = tiny_job()
    config = Config.fromfile(path)
    state = export(noisy(config.model).state_dict(), 'transformers')
    config.model.decoder.refine, config.model.bbox_head.share_branches = True, False
    config.dump(path)
    torch.save(state, tmp_path / 'pytorch_model.bin')
    words = {} if said is None else {'with_box_refine': said}
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'deformable_detr', **words}))
    if said is None:
        loaded(path, load_from=str(tmp_path))
        log = next(tmp_path.glob('work/*/*.log')).read_text()
        assert 'warning: the heads of all layers are equal' in log
    else:
        with pytest.raises(ValueError, match='the weights are base, the model is refine'):
            loaded(path, load_from=str(tmp_path))


@pytest.mark.parametrize('hooks', [[HOOK, dict(type='EMAHook')], [dict(type='EMAHook')]])
@pytest.mark.parametrize('dialect', ['mmdet', 'transformers', 'ddetr_plugin'])
def test_load_from_takes_what_lightning_saves(tiny_job, tmp_path, dialect, hooks):
    path = tiny_job(custom_hooks=hooks, log_level='INFO')
    model = noisy(Config.fromfile(path).model)
    state = model.state_dict()
    if dialect != 'ddetr_plugin':
        state = export(state, dialect)
    state = {f'model.{name}': tensor for name, tensor in state.items()}
    content = {'state_dict': state, 'pytorch-lightning_version': '2.5.0', 'global_step': 7}
    torch.save(content, tmp_path / 'lightning.ckpt')
    runner = loaded(path, load_from=str(tmp_path / 'lightning.ckpt'))
    assert_same(runner.model.state_dict(), model.state_dict(), COUNTER)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            assert_same(hook.ema_model.module.state_dict(), model.state_dict(), COUNTER)
    log = next(tmp_path.glob('work/*/*.log')).read_text()
    assert f'model. was stripped from {len(state)} names' in log


def mmdet_2_job(tiny_job, tmp_path):
    """(config, file of mmdet 2.x for it, its weights by those names)."""
    path = tiny_job(log_level='INFO')
    config = Config.fromfile(path)
    preprocessor = config.model.data_preprocessor
    config.model = bridge_config('refine', 5, neck=dict(bias=False))
    config.model.data_preprocessor = preprocessor
    config.model.bbox_head.num_classes = 3
    config.dump(path)
    content = recorded('refine')[0]
    content['meta']['CLASSES'] = ('post', 'square', 'x', 'bar', 'y')
    torch.save(content, tmp_path / 'mmdet_2.pth')
    return path, tmp_path / 'mmdet_2.pth', content['state_dict']


def test_load_from_takes_mmdet_2_and_moves_its_classes(tiny_job, tmp_path):
    path, file, state = mmdet_2_job(tiny_job, tmp_path)
    runner = loaded(path, load_from=str(file))
    found = runner.model.state_dict()
    level_embed = state['bbox_head.transformer.level_embeds']
    assert torch.equal(found['encoder.level_embed'], level_embed)
    classes = dataset_classes(Config.fromfile(path))
    rows = [('post', 'square', 'x', 'bar', 'y').index(name) for name in classes]
    old = state['bbox_head.cls_branches.1.weight'][rows]
    assert torch.equal(found['bbox_head.cls_branches.1.weight'], old)
    log = next(tmp_path.glob('work/*/*.log')).read_text()
    assert 'the names of mmdet 2.x became those of mmdet 3' in log
    assert 'the file is of a model with' not in log


def test_the_test_tool_takes_mmdet_2(tiny_job, tmp_path):
    path, file, _ = mmdet_2_job(tiny_job, tmp_path)
    results = tmp_path / 'results.pkl'
    run_command('test', [str(path), str(file), '--out', str(results)])
    assert len(pickle.loads(results.read_bytes())) == 8


@pytest.mark.parametrize('said', ['part', 'average'])
def test_the_test_tool_says_what_to_name_instead_of_a_part(tiny_job, tmp_path, capsys, said):
    path = tiny_job()
    state = export(noisy(Config.fromfile(path).model).state_dict(), 'transformers')
    file = tmp_path / 'pytorch_model-00001-of-00003.bin'
    words = f'is one of 3 files that hold the weights together; name their folder {tmp_path}'
    if said == 'average':
        state, file = {'ema_state_dict': state}, tmp_path / 'x.pth'
        words = 'tools/convert_checkpoint.py --ema takes that'
    torch.save(state, file)
    with pytest.raises(SystemExit):
        run_command('test', [str(path), str(file)])
    assert words in capsys.readouterr().err


def test_load_state_dict_and_init_cfg_take_foreign_weights(tmp_path):
    model = ours('two-stage')
    for dialect in DIALECTS:
        state = export(model.state_dict(), dialect)
        other = empty('two-stage')
        # Counters are missing in foreign files, as they are in files of older torch.
        other.load_state_dict(state, strict=True)
        assert_same(other.state_dict(), model.state_dict())
    file = tmp_path / 'x.pth'
    torch.save({'model': export(model.state_dict(), 'official')}, file)
    other = empty('two-stage')
    load_checkpoint(other, str(file), strict=True)
    assert_same(other.state_dict(), model.state_dict())


def test_foreign_weights_that_do_not_fit_fail_as_load_state_dict_does():
    state = export(ours('refine').state_dict(), 'official')
    with pytest.raises(RuntimeError, match='the weights are refine, the model is base'):
        empty('base').load_state_dict(state)


def test_a_detector_inside_another_module_takes_foreign_weights():
    model = ours('base')
    outer = torch.nn.ModuleDict({'teacher': empty('base'), 'other': torch.nn.Linear(2, 2)})
    state = {f'teacher.{k}': v for k, v in export(model.state_dict(), 'transformers').items()}
    state |= {f'other.{k}': v for k, v in outer['other'].state_dict().items()}
    outer.load_state_dict(state, strict=True)
    assert_same(outer['teacher'].state_dict(), model.state_dict())


def test_partial_weights_of_ours_load_as_before():
    """Only foreign names are the bridge's business."""
    model, other = ours('base'), empty('base')
    part = {k: v for k, v in model.state_dict().items() if k.startswith('backbone')}
    missing, unexpected = other.load_state_dict(part, strict=False)
    assert unexpected == []
    assert missing
    assert torch.equal(other.backbone.conv1.weight, model.backbone.conv1.weight)


@pytest.mark.parametrize(
    ('dataset', 'classes'),
    [
        (dict(type='CocoDataset', metainfo=dict(classes=('a', 'b'))), ('a', 'b')),
        (dict(type='CocoDataset', metainfo=dict(classes='a')), ('a',)),
        (
            dict(type='RepeatDataset', dataset=dict(type='X', metainfo=dict(classes=('a',)))),
            ('a',),
        ),
        (
            dict(type='ConcatDataset', datasets=[dict(type='X', metainfo=dict(classes=('b',)))]),
            ('b',),
        ),
        (dict(type='mmdet.CocoDataset'), coco_rows()),
        (None, None),
    ],
)
def test_class_names_come_from_the_dataset(dataset, classes):
    config = {'train_dataloader': {'dataset': dataset}} if dataset else {}
    if classes == coco_rows():
        classes = tuple(name for name in classes if name)
    assert dataset_classes(config) == classes
