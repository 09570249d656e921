"""tools/convert_checkpoint.py from the command line's point of view."""

import argparse
import json
import os
import sys

import pytest
import torch
from bridge_cases import assert_same, bridge_config
from builders import build
from mask_cases import mask_head_config
from mmengine.config import Config
from mmengine.runner import Runner
from test_mmdet_2 import recorded

from ddetr_plugin.checkpoints import export, read_checkpoint, write_checkpoint
from ddetr_plugin.checkpoints.class_rows.rows import coco_classes
from ddetr_plugin.checkpoints.names.table import with_transformers_resnet
from ddetr_plugin.checkpoints.parity.other_models import mmdet_model
from ddetr_plugin.cli import run_command


@pytest.fixture
def run(capsys):
    """Runs the tool; returns its report."""

    def call(*arguments):
        run_command('convert', [str(argument) for argument in arguments])
        return capsys.readouterr().out

    return call


@pytest.fixture
def failure(capsys):
    """Runs the tool, which must fail; returns what it says."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            run_command('convert', [str(argument) for argument in arguments])
        assert stop.value.code not in (0, None)
        return str(stop.value.code) + capsys.readouterr().err

    return call


def write_config(path, kind='base', classes=80, **changes):
    dataset = dict(type='mmdet.CocoDataset')
    Config(
        dict(
            default_scope='mmdet',
            custom_imports=dict(imports=['ddetr_plugin'], allow_failed_imports=False),
            model=bridge_config(kind, classes, **changes),
            train_dataloader=dict(dataset=dataset),
        )
    ).dump(path)
    return path


def write_official(path, kind='base', classes=91, dilation=False):
    state = export(build(bridge_config(kind, classes)).state_dict(), 'official')
    args = argparse.Namespace(dilation=dilation)
    torch.save({'model': state, 'optimizer': {}, 'args': args}, path)
    return state


@pytest.mark.parametrize('kind', ['base', 'two-stage'])
@pytest.mark.parametrize('between', ['official', 'mmdet', 'transformers'])
def test_official_weights_come_back_bit_for_bit(run, tmp_path, kind, between):
    state = write_official(tmp_path / 'official.pth', kind)
    config = write_config(tmp_path / 'config.py', kind)
    report = run(tmp_path / 'official.pth', tmp_path / 'ours.pth', '--config', config)
    for words in (
        'written by: official',
        f'variant: {kind}; backbone not dilated',
        'class rows: 80 of 91 moved, 11 left out: (91,',
        'neck: 16 tensors',
        'not converted: optimizer',
        '80 class rows, checksum',
    ):
        assert words in report
    ours = torch.load(tmp_path / 'ours.pth')
    assert ours['meta']['dataset_meta']['classes'] == coco_classes()
    run(tmp_path / 'ours.pth', tmp_path / 'other.pth', '--to', between)
    if between == 'mmdet':
        # Its 80 rows cannot hold the others.
        assert (
            len(read_checkpoint(tmp_path / 'other.pth').state['bbox_head.cls_branches.0.bias'])
            == 80
        )
        return
    run(tmp_path / 'other.pth', tmp_path / 'back.pth', '--to', 'official')
    assert_same(read_checkpoint(tmp_path / 'back.pth').state, state)


FPN = dict(
    type='mmdet.FPN',
    in_channels=[128, 256, 512],
    out_channels=64,
    norm_cfg=dict(type='GN', num_groups=32),
    add_extra_convs='on_input',
    num_outs=4,
)


def write_other(path, part):
    """Weights of a model with a mask head, or with another neck; returns the path of its config."""
    file = write_config(path.with_suffix('.py'), 'base', 5)
    config = Config.fromfile(file)
    if part == 'masks':
        config.model.backbone.out_indices = (0, 1, 2, 3)
        config.model.mask_head = mask_head_config(embed_dims=64)
    else:
        config.model.neck = FPN
    config.dump(file)
    torch.save({'state_dict': build(config.model).state_dict()}, path)
    return file


@pytest.mark.parametrize(
    ('part', 'names'), [('masks', 'mask_head.convs.*'), ('fpn', 'neck.lateral_convs.*')]
)
def test_parts_that_others_have_not_are_named_and_nothing_is_written(
    failure, tmp_path, part, names
):
    config = write_other(tmp_path / 'ours.pth', part)
    for to in ('official', 'mmdet', 'transformers'):
        out = tmp_path / f'out.{"bin" if to == "transformers" else "pth"}'
        arguments = (tmp_path / 'ours.pth', out, '--to', to, '--classes', 'keep')
        assert f'left over: {names[:-1]}' in failure(*arguments)
        words = failure(*arguments, '--config', config)
        assert f'{to} has no counterpart of' in words and names in words
        assert not out.exists()


def test_what_has_one_of_our_names_and_no_counterpart_takes_nothing_with_it(run, tmp_path):
    state = write_official(tmp_path / 'official.pth')
    stray = 'bbox_head.cls_branches.0.bias'
    torch.save({'model': {**state, stray: torch.zeros(91)}}, tmp_path / 'stray.pth')
    back = tmp_path / 'back.pth'
    report = run(tmp_path / 'stray.pth', back, '--to', 'official', '--allow-missing')
    assert f'ignored: left over: {stray}' in report
    assert_same(read_checkpoint(back).state, state)


def test_the_word_of_earlier_releases_for_transformers_is_understood(run, failure, tmp_path):
    state = write_official(tmp_path / 'official.pth')
    report = run(tmp_path / 'official.pth', tmp_path / 'x.bin', '--to', 'hf')
    assert 'tensors for transformers' in report
    report = run(tmp_path / 'x.bin', tmp_path / 'back.pth', '--from', 'hf', '--to', 'official')
    assert 'written by: transformers' in report
    assert_same(read_checkpoint(tmp_path / 'back.pth').state, state)
    assert "'transformers'" in failure(tmp_path / 'x.bin', tmp_path / 'y.pth', '--from', 'hface')


def test_the_detector_is_written_without_its_mask_head_where_that_is_asked_for(run, tmp_path):
    write_other(tmp_path / 'ours.pth', 'masks')
    base = write_config(tmp_path / 'base.py', 'base', 5)
    state = torch.load(tmp_path / 'ours.pth')['state_dict']
    without = {k: v for k, v in state.items() if not k.startswith('mask_head.')}
    torch.save({'state_dict': without}, tmp_path / 'without.pth')
    for to, config in (('official', []), ('mmdet', ['--config', base])):
        asked = ['--to', to, '--classes', 'keep']
        run(tmp_path / 'without.pth', tmp_path / 'wanted.pth', *asked)
        out = tmp_path / 'out.pth'
        report = run(tmp_path / 'ours.pth', out, *asked, *config, '--allow-missing')
        assert 'left over: mask_head.predictor.weight' in report
        assert_same(read_checkpoint(out).state, read_checkpoint(tmp_path / 'wanted.pth').state)


def test_what_the_tool_writes_is_loaded_by_a_runner(run, tiny_job, tmp_path):
    path = tiny_job()
    config = Config.fromfile(path)
    model = build(config.model)
    torch.save({'model': export(model.state_dict(), 'official')}, tmp_path / 'official.pth')
    report = run(
        tmp_path / 'official.pth', tmp_path / 'ours.pth', '--config', path, '--classes', 'post',
        'bar', 'square',
    )  # fmt: skip
    assert 'checksum' in report
    config.load_from = str(tmp_path / 'ours.pth')
    runner = Runner.from_cfg(config)
    runner.load_or_resume()
    # The config has the same classes in another order.
    old = model.bbox_head.cls_branches[0].weight
    assert torch.equal(runner.model.bbox_head.cls_branches[0].weight, old[[2, 1, 0]])


def test_verify_compares_with_mmdets_own_model(run, tmp_path):
    kind = 'refine'
    theirs = mmdet_model(bridge_config(kind, neck=dict(bias=False)))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        theirs.level_embed.normal_()
    torch.save({'state_dict': theirs.state_dict()}, tmp_path / 'mmdet.pth')
    config = write_config(tmp_path / 'config.py', kind, 5)
    report = run(
        tmp_path / 'mmdet.pth', tmp_path / 'ours.pth', '--config', config, '--verify', '--classes',
        'keep',
    )  # fmt: skip
    (line,) = [line for line in report.splitlines() if line.startswith('verified')]
    logits, boxes = (float(word.rstrip(',')) for word in line.split() if 'e-' in word)
    assert logits < 1e-5
    assert boxes < 1e-6
    # The file has no config of its own: the two share what is wrong with ours.
    assert 'verified as far as weights tell' in report
    assert 'note: the file brings no config' in report


@pytest.mark.parametrize('dialect', ['transformers', 'mmdet'])
def test_a_file_of_other_heads_and_points_is_named_and_not_verified(
    run, failure, tmp_path, dialect
):
    """2 heads x 4 points have the shapes of 4 x 2."""
    state = export(build(bridge_config('base', 5)).state_dict(), dialect)
    file = tmp_path / 'pytorch_model.bin'
    if dialect == 'transformers':
        torch.save(state, file)
        settings = dict(encoder_attention_heads=2, encoder_n_points=4, decoder_n_points=2)
        words = json.dumps(dict(model_type='deformable_detr', num_feature_levels=4, **settings))
        (tmp_path / 'config.json').write_text(words)
    else:
        cfg = """model = dict(
            type='DeformableDETR', num_feature_levels=4,
            encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_heads=2, embed_dims=64))))"""
        torch.save({'state_dict': state, 'meta': {'cfg': cfg}}, file)
    config = write_config(tmp_path / 'config.py', 'base', 5)
    arguments = (file, tmp_path / 'ours.pth', '--config', config, '--classes', 'keep')
    assert 'encoder heads 2, not 4; encoder points 4, not 2 as in' in run(*arguments)
    (tmp_path / 'ours.pth').unlink()
    assert 'encoder heads 2, not 4' in failure(*arguments, '--verify')
    assert not (tmp_path / 'ours.pth').exists()


def test_weights_that_are_not_finite_are_counted_and_fail_to_verify(run, failure, tmp_path):
    state = export(build(bridge_config('base', 5)).state_dict(), 'mmdet')
    state['encoder.layers.0.norms.0.bias'][3] = float('nan')
    torch.save({'state_dict': state}, tmp_path / 'mmdet.pth')
    config = write_config(tmp_path / 'config.py', 'base', 5)
    arguments = (tmp_path / 'mmdet.pth', tmp_path / 'ours.pth', '--config', config, '--classes')
    report = run(*arguments, 'keep')
    assert 'warning: 1 tensors hold numbers that are not finite: encoder.layers.0.norms' in report
    (tmp_path / 'ours.pth').unlink()
    said = failure(*arguments, 'keep', '--verify')
    assert 'verified: no; largest differences on random images: logits nan' in said
    assert not (tmp_path / 'ours.pth').exists()


def test_verify_compares_with_transformers_own_model(run, tmp_path):
    pytest.importorskip('transformers', reason='transformers is not installed')
    model = build(bridge_config('refine', 91))
    write_checkpoint(
        tmp_path / 'x.bin', export(model.state_dict(), 'transformers'), 'transformers', {}
    )
    config = write_config(tmp_path / 'config.py', 'refine', 80)
    report = run(tmp_path / 'x.bin', tmp_path / 'ours.pth', '--config', config, '--verify')
    assert 'class rows: 80 of 91 moved' in report
    (line,) = [line for line in report.splitlines() if line.startswith('verified')]
    assert max(float(word.rstrip(',')) for word in line.split() if 'e-' in word) < 1e-5


@pytest.mark.parametrize('own', [True, False])
def test_transformers_backbone_keeps_its_kind_of_names(run, tmp_path, own):
    state = export(build(bridge_config('base', 91)).state_dict(), 'transformers')
    state = with_transformers_resnet(state) if own else state
    write_checkpoint(tmp_path / 'x.bin', state, 'transformers', {})
    run(tmp_path / 'x.bin', tmp_path / 'ours.pth')
    run(tmp_path / 'ours.pth', tmp_path / 'back.bin', '--to', 'transformers')
    assert_same(read_checkpoint(tmp_path / 'back.bin').state, state)


def test_verify_says_where_there_is_nothing_to_compare_with(run, tmp_path):
    write_official(tmp_path / 'official.pth')
    config = write_config(tmp_path / 'config.py')
    report = run(tmp_path / 'official.pth', tmp_path / 'ours.pth', '--config', config, '--verify')
    assert 'verified: no; there is no library of official' in report


def test_classes_and_config_options_decide_the_rows(run, tmp_path):
    state = write_official(tmp_path / 'official.pth', 'two-stage')
    config = write_config(tmp_path / 'config.py', 'two-stage', 2)
    report = run(
        tmp_path / 'official.pth', tmp_path / 'ours.pth', '--config', config, '--classes', 'dog',
        'unicorn',
    )  # fmt: skip
    assert 'fresh: unicorn' in report
    ours = read_checkpoint(tmp_path / 'ours.pth').state
    assert torch.equal(ours['query_head.cls_branch.bias'], state['class_embed.2.bias'][:2])
    wide = run(
        tmp_path / 'official.pth', tmp_path / 'all.pth', '--config', config, '--cfg-options',
        'model.bbox_head.num_classes=91', 'model.query_head.num_classes=91',
    )  # fmt: skip
    assert '91 class rows' in wide


def test_names_that_do_not_fit_the_rows_are_passed_on_and_not_replaced_by_cocos(run, tmp_path):
    state = export(build(bridge_config('base', 80)).state_dict(), 'mmdet')
    meta = {'dataset_meta': {'classes': ('bolt', 'nut', 'screw')}}
    torch.save({'state_dict': state, 'meta': meta}, tmp_path / 'mmdet.pth')
    assert 'warning: the file names 3' in run(tmp_path / 'mmdet.pth', tmp_path / 'ours.pth')
    assert torch.load(tmp_path / 'ours.pth')['meta']['dataset_meta'] == meta['dataset_meta']
    report = run(tmp_path / 'ours.pth', tmp_path / 'official.pth', '--to', 'official')
    assert '80 class rows' in report


@pytest.mark.parametrize('dialect', ['official', 'transformers'])
def test_80_rows_stay_80_where_they_came_from_or_when_told_to(run, tmp_path, dialect):
    model = build(bridge_config('base', 80))
    state = export(model.state_dict(), dialect)
    theirs, ours, back = (tmp_path / name for name in ('theirs.bin', 'ours.pth', 'back.bin'))
    write_checkpoint(theirs, state, dialect, {})
    run(theirs, ours)
    run(ours, tmp_path / 'again.pth')
    for source in (theirs, ours, tmp_path / 'again.pth'):
        assert 'become 91' not in run(source, back, '--to', dialect)
        assert_same(read_checkpoint(back).state, state)
    write_checkpoint(ours, model.state_dict(), 'ddetr_plugin', {})
    assert 'note: 80 class rows become 91' in run(ours, back, '--to', dialect)
    assert len(read_checkpoint(back).state['class_embed.0.bias']) == 91
    assert 'become 91' not in run(ours, back, '--to', dialect, '--classes', 'keep')
    assert_same(read_checkpoint(back).state, state)


def test_a_dilated_backbone_is_reported_and_compared_with_the_config(run, tmp_path):
    write_official(tmp_path / 'official.pth', 'single-scale', dilation=True)
    config = write_config(tmp_path / 'config.py', 'single-scale')
    report = run(tmp_path / 'official.pth', tmp_path / 'ours.pth', '--config', config)
    assert 'variant: single-scale; dilated backbone (DC5)' in report
    warning = 'warning: the file is of a dilated backbone (DC5), the config has an undilated one'
    assert warning in report
    # What is written says it again, in every dialect that can.
    for dialect in ('ddetr_plugin', 'official', 'mmdet'):
        run(tmp_path / 'official.pth', tmp_path / 'x.pth', '--to', dialect)
        assert warning in run(tmp_path / 'x.pth', tmp_path / 'y.pth', '--config', config)


@pytest.mark.parametrize('kind', ['ddetr_plugin.DilatedResNet', 'mmdet.ResNet'])
def test_another_reading_of_dilation_is_reported(run, tmp_path, kind):
    """D4: the official release and mmdet dilate the first block of a stage differently."""
    model = build(bridge_config('single-scale', 91))
    args = argparse.Namespace(dilation=True)
    state = export(model.state_dict(), 'official')
    torch.save({'model': state, 'args': args}, tmp_path / 'official.pth')
    cfg = 'model = dict(backbone=dict(dilations=(1, 1, 1, 2)))'
    state = export(model.state_dict(), 'mmdet')
    torch.save({'state_dict': state, 'meta': {'cfg': cfg}}, tmp_path / 'mmdet.pth')
    backbone = dict(type=kind, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    config = write_config(tmp_path / 'config.py', 'single-scale', 91, backbone=backbone)
    for dialect in ('official', 'mmdet'):
        report = run(
            tmp_path / f'{dialect}.pth', tmp_path / 'x.pth', '--config', config, '--classes', 'keep'
        )
        fits = (dialect == 'mmdet') == (kind == 'mmdet.ResNet')
        assert ('dilate the first block of a stage differently (D4)' in report) != fits
        assert 'warning: the file' not in report


@pytest.mark.parametrize('dialect', ['official', 'transformers'])
def test_weights_without_a_neck_bias_are_written_with_zeros_and_a_note(run, tmp_path, dialect):
    state = build(bridge_config('base', neck=dict(bias=False))).state_dict()
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'ours.pth')
    report = run(tmp_path / 'ours.pth', tmp_path / 'x.pth', '--to', dialect)
    assert f'note: {dialect} has biases in the neck, the weights have none: zeros (D1)' in report
    written = read_checkpoint(tmp_path / 'x.pth').state
    for i in range(4):
        bias = written[f'{"model." if dialect == "transformers" else ""}input_proj.{i}.0.bias']
        assert torch.equal(bias, torch.zeros(64))


def test_weights_for_mmdet_say_that_its_neck_needs_a_bias(run, tmp_path):
    write_official(tmp_path / 'official.pth')
    report = run(tmp_path / 'official.pth', tmp_path / 'mmdet.pth', '--to', 'mmdet')
    assert 'build the neck with bias=True' in report
    theirs = mmdet_model(bridge_config('base', 80))
    theirs.load_state_dict(torch.load(tmp_path / 'mmdet.pth')['state_dict'], strict=False)


def test_what_is_wrong_is_said_in_one_message(failure, tmp_path):
    official = tmp_path / 'official.pth'
    state = write_official(official)
    out = tmp_path / 'out.pth'
    assert 'absent.pth does not exist' in failure(tmp_path / 'absent.pth', out)
    assert 'config absent.py does not exist' in failure(official, out, '--config', 'absent.py')
    assert '--verify needs --config' in failure(official, out, '--verify')
    assert 'invalid choice' in failure(official, out, '--to', 'detrex')
    refine = write_config(tmp_path / 'refine.py', 'refine')
    said = failure(official, out, '--config', refine)
    assert 'the weights are base, the model is refine' in said
    assert 'missing: bbox_head.cls_branches.1.weight' in said
    del state['transformer.reference_points.bias']
    torch.save({'model': state}, official)
    assert 'missing: query_head.reference_points_fc.bias' in failure(official, out)
    assert not out.exists()


def test_a_file_of_ours_is_checked_without_a_config(failure, tmp_path):
    state = build(bridge_config('base')).state_dict()
    state['backbone.fc.weight'] = state.pop('backbone.layer1.0.bn1.bias')
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'ours.pth')
    said = failure(tmp_path / 'ours.pth', tmp_path / 'out.pth', '--to', 'official')
    assert 'missing: backbone.layer1.0.bn1.bias' in said
    assert 'left over: backbone.fc.weight' in said


def test_entries_that_are_no_tensors_are_named(run, tmp_path):
    state = export(build(bridge_config('base')).state_dict(), 'official')
    torch.save({'model': {**state, 'version': 3, 'note': 'x'}}, tmp_path / 'x.pth')
    report = run(tmp_path / 'x.pth', tmp_path / 'out.pth')
    assert 'not converted: version, note (among the weights, but no tensors)' in report
    assert 'from the backbone (ResNet-18)' in report


def test_missing_weights_can_be_allowed(run, tmp_path):
    official = tmp_path / 'official.pth'
    state = write_official(official)
    del state['transformer.reference_points.bias']
    torch.save({'model': state}, official)
    report = run(official, tmp_path / 'out.pth', '--allow-missing')
    assert 'ignored: missing: query_head.reference_points_fc.bias' in report


def test_what_does_not_fit_cannot_be_verified_but_is_converted(run, tmp_path):
    state = export(build(bridge_config('base', 5)).state_dict(), 'mmdet')
    del state['reference_points_fc.bias']
    state['extra'] = torch.zeros(1)
    torch.save({'state_dict': state}, tmp_path / 'mmdet.pth')
    config = write_config(tmp_path / 'config.py', 'base', 5)
    report = run(
        tmp_path / 'mmdet.pth', tmp_path / 'out.pth', '--config', config, '--verify',
        '--allow-missing', '--classes', 'keep',
    )  # fmt: skip
    assert 'verified: no; 2 tensors do not fit' in report
    assert (tmp_path / 'out.pth').exists()


def test_a_missing_library_is_blamed_on_verify_and_a_missing_module_of_a_config_is_not(
    failure, tmp_path, monkeypatch
):
    state = export(build(bridge_config('base', 5)).state_dict(), 'transformers')
    torch.save(state, tmp_path / 'x.bin')
    config = write_config(tmp_path / 'config.py', 'base', 5)
    monkeypatch.setitem(sys.modules, 'transformers', None)
    arguments = (tmp_path / 'x.bin', tmp_path / 'out.pth', '--config', config)
    keep = ('--classes', 'keep')
    assert '--verify needs the library that wrote the weights (transformers)' in failure(
        *arguments, '--verify', *keep
    )
    config.write_text(config.read_text().replace("'ddetr_plugin'", "'not_there'"))
    said = failure(*arguments, '--trust', *keep)
    assert 'not_there' in said
    assert '--verify' not in said


def test_a_destination_that_cannot_be_written_is_refused_at_once(failure, tmp_path):
    official = tmp_path / 'official.pth'
    write_official(official)
    before = official.read_bytes()
    said = failure(official, tmp_path)
    assert 'is a folder; name the file to write' in said
    assert 'ddetr_plugin.pth' in said
    assert 'belongs to the weights to convert' in failure(official, official)
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs' / 'model.safetensors').write_bytes(b'x')
    arguments = (
        tmp_path / 'theirs',
        tmp_path / 'theirs' / 'model.safetensors',
        '--to',
        'transformers',
    )
    assert 'belongs to the weights to convert' in failure(*arguments)
    assert 'for --to transformers only' in failure(official, tmp_path / 'x.safetensors')
    assert official.read_bytes() == before


def test_a_config_of_another_model_is_refused(failure, tmp_path):
    official = tmp_path / 'official.pth'
    write_official(official)
    for model in ({'model': {'type': 'FCOS', 'bbox_head': {}}}, {}):
        Config(model).dump(tmp_path / 'config.py')
        said = failure(official, tmp_path / 'out.pth', '--config', tmp_path / 'config.py')
        kind = 'FCOS' if model else 'nameless model'
        assert f"describes a {kind}, expected this package's" in said


def test_a_config_with_a_backbone_that_needs_memory_to_be_built_is_compared(failure, tmp_path):
    """mmdet's EfficientNet reads numbers from tensors while it is built."""
    official = tmp_path / 'official.pth'
    write_official(official)
    backbone = dict(_delete_=True, type='ddetr_plugin.EfficientNetLite0')
    config = write_config(tmp_path / 'config.py', backbone=backbone)
    assert 'left over: backbone.conv1.weight' in failure(
        official, tmp_path / 'out.pth', '--config', config
    )


def test_trust_is_the_only_way_to_a_file_that_runs_something(run, failure, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'made'),)

    state = export(build(bridge_config('base')).state_dict(), 'official')
    torch.save({'model': state, 'args': Attack()}, tmp_path / 'x.pth')
    said = failure(tmp_path / 'x.pth', tmp_path / 'out.pth')
    assert 'mkdir' in said
    assert '--trust' in said
    assert not (tmp_path / 'made').exists()
    assert 'checksum' in run(tmp_path / 'x.pth', tmp_path / 'out.pth', '--trust')
    assert (tmp_path / 'made').exists()


@pytest.mark.parametrize(('kind', 'prefix'), [('refine', ''), ('two-stage', 'model.')])
def test_mmdet_2_is_converted_and_verified_also_inside_lightning(run, tmp_path, kind, prefix):
    content, _, _ = recorded(kind)
    count = len(content['state_dict'])
    content['state_dict'] = {f'{prefix}{n}': t for n, t in content['state_dict'].items()}
    torch.save(content, tmp_path / 'theirs.pth')
    config = write_config(tmp_path / 'config.py', kind, 5)
    arguments = ['--config', config, '--verify', '--classes', 'keep']
    report = run(tmp_path / 'theirs.pth', tmp_path / 'ours.pth', *arguments)
    for words in (
        'written by: mmdet',
        f'variant: {kind}; backbone not dilated',
        'note: the names of mmdet 2.x became those of mmdet 3',
        'verified: largest differences',
    ):
        assert words in report
    assert (f'note: model. was stripped from {count} names' in report) == bool(prefix)
    assert 'warning' not in report


def test_a_model_whose_heads_are_not_tied_is_no_model_that_refines(run, failure, tmp_path):
    """The source's config.json says so, and the config that refines is refused."""
    config = write_config(
        tmp_path / 'refine.py', 'base', 5, decoder=dict(refine=True),
        bbox_head=dict(share_branches=False),
    )  # fmt: skip
    state = export(build(Config.fromfile(config).model).state_dict(), 'transformers')
    state = {n: t for n, t in state.items() if not n.startswith('model.decoder.bbox_embed')}
    torch.save(state, tmp_path / 'pytorch_model.bin')
    words = {'model_type': 'deformable_detr', 'with_box_refine': False}
    (tmp_path / 'config.json').write_text(json.dumps(words))
    said = failure(tmp_path, tmp_path / 'out.pth', '--config', config)
    assert 'the weights are base, the model is refine' in said
    ours = tmp_path / 'ours' / 'ours.pth'
    assert 'variant: base' in run(tmp_path, ours)
    assert 'variant: base' in run(ours, tmp_path / 'other' / 'back.bin', '--to', 'transformers')
    assert read_checkpoint(tmp_path / 'other' / 'back.bin').state.keys() == state.keys()
