"""Settings that weights do not show: read from the file, compared, and computed by its library."""

import argparse
import json
from pathlib import Path

import mmdet
import pytest
import torch
from bridge_cases import KINDS, bridge_config, source
from builders import build
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from test_convert_tool import write_config

from ddetr_plugin import checkpoints
from ddetr_plugin.checkpoints import OURS, Source, export, read_checkpoint, to_ours
from ddetr_plugin.checkpoints.files.config_settings import RELEASED
from ddetr_plugin.checkpoints.files.stated_settings import (
    file_settings,
    our_settings,
    setting_mismatches,
)
from ddetr_plugin.checkpoints.parity import verify as verify_module
from ddetr_plugin.checkpoints.parity.other_models import mmdet_config, transformers_model
from ddetr_plugin.checkpoints.parity.source_models import source_model
from ddetr_plugin.checkpoints.parity.verify import TOLERANCE, build_ours, verify
from ddetr_plugin.cli import run_command
from ddetr_plugin.config_files import find_config


def gelu_ffn():
    return dict(
        type='mmengine.FFN',
        _delete_=True,
        embed_dims=64,
        feedforward_channels=48,
        act_cfg=dict(type='GELU'),
        add_identity=False,
    )


# Small, so that many can be compared; with bottlenecks for the styles that only those have.
BACKBONE = dict(backbone=dict(base_channels=8), neck=dict(in_channels=[16, 32, 64]))
BOTTLENECKS = dict(backbone=dict(depth=50, base_channels=8), neck=dict(in_channels=[64, 128, 256]))
FOUR_BY_TWO = dict(num_heads=2, num_points=4)

# What differs from `bridge_config` in mmdet's config and in ours, and what is said of it.
MMDET = {
    'offset': (
        dict(positional_encoding=dict(offset=0.0)),
        dict(positional_encoding=dict(offset=0.0)),
        'positional encoding offset 0, not -0.5',
    ),
    'temperature': (
        dict(positional_encoding=dict(temperature=20)),
        dict(positional_encoding=dict(temperature=20)),
        'positional encoding temperature 20, not 10000',
    ),
    'scale': (
        dict(positional_encoding=dict(scale=1.0)),
        dict(positional_encoding=dict(scale=1.0)),
        'positional encoding scale 1, not 6.28319',
    ),
    'normalize': (
        dict(positional_encoding=dict(normalize=False)),
        dict(positional_encoding=dict(normalize=False)),
        'positional encoding normalize False, not True',
    ),
    'GELU': (
        {
            f'{coder}.layer_cfg.ffn_cfg.act_cfg': dict(type='GELU')
            for coder in ('encoder', 'decoder')
        },
        {f'{coder}.layer.ffn': gelu_ffn() for coder in ('encoder', 'decoder')},
        'encoder activation gelu, not relu; decoder activation gelu, not relu',
    ),
    'norm of the neck': (
        dict(neck=dict(norm_cfg=dict(num_groups=16))),
        dict(neck=dict(norm_cfg=dict(num_groups=16))),
        'neck groups 16, not 32',
    ),
    'activation of the neck': (
        {'neck.act_cfg': dict(type='ReLU', _delete_=True)},
        {'neck.act_cfg': dict(type='ReLU', _delete_=True)},
        'neck activation relu, not none',
    ),
    'eps of the layers': (
        {'encoder.layer_cfg.norm_cfg.eps': 0.1},
        {'encoder.layer.norm.eps': 0.1},
        'encoder norm eps 0.1, not 1e-05',
    ),
    'heads of self-attention': (
        {'decoder.layer_cfg.self_attn_cfg.num_heads': 2},
        {'decoder.layer.self_attn.num_heads': 2},
        'decoder self-attention heads 2, not 4',
    ),
    'heads of cross-attention': (
        {'decoder.layer_cfg.cross_attn_cfg': FOUR_BY_TWO},
        {'decoder.layer.cross_attn': FOUR_BY_TWO},
        'decoder cross-attention heads 2, not 4; decoder points 4, not 2',
    ),
    'style of the backbone': (
        dict(backbone=dict(style='caffe')),
        dict(backbone=dict(style='caffe')),
        'backbone style caffe, not pytorch',
    ),
    'style: strides': (
        dict(backbone=dict(strides=(2, 2, 2, 2))),
        dict(backbone=dict(strides=(2, 2, 2, 2))),
        'backbone strides (2, 2, 2, 2), not (1, 2, 2, 2)',
    ),
    'mean of pixels': (
        dict(data_preprocessor=dict(mean=[103.53, 116.28, 123.675])),
        dict(data_preprocessor=dict(mean=[103.53, 116.28, 123.675])),
        'pixel mean (103.53, 116.28, 123.675), not (127, 127, 127)',
    ),
}
# Numbers that random images, already normalised, do not show.
UNSEEN = ('mean of pixels',)
# The same for config.json.
TRANSFORMERS = {
    'gelu': (
        dict(activation_function='gelu'),
        {f'{coder}.layer.ffn': gelu_ffn() for coder in ('encoder', 'decoder')},
        'encoder activation gelu, not relu; decoder activation gelu, not relu',
    ),
    'silu': (
        dict(activation_function='silu'),
        {
            f'{coder}.layer.ffn': gelu_ffn() | dict(act_cfg=dict(type='SiLU'))
            for coder in ('encoder', 'decoder')
        },
        'encoder activation silu, not relu; decoder activation silu, not relu',
    ),
    'heads of the encoder': (
        dict(encoder_attention_heads=2, encoder_n_points=4),
        {'encoder.layer.self_attn': FOUR_BY_TWO},
        'encoder heads 2, not 4; encoder points 4, not 2',
    ),
    'activation of the backbone': (
        {'backbone_config.hidden_act': 'gelu'},
        None,
        'backbone activation gelu, not relu',
    ),
    'style of the backbone': (
        {'backbone_config.downsample_in_bottleneck': True},
        dict(backbone=dict(style='caffe')),
        'backbone style caffe, not pytorch',
    ),
}


def our_config(name, changes=None):
    config = Config(dict(model=bridge_config('base')))
    config.merge_from_dict(dict(model=BOTTLENECKS if 'style' in name else BACKBONE))
    for key, value in (changes or {}).items():
        config.merge_from_dict({f'model.{key}': value})
    return config.model


def noisy(model):
    """Random weights that make every part matter: a fresh model's attention is uniform."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('level_embed'):
                parameter.zero_()  # mmdet leaves it uninitialised
            parameter.add_(torch.randn_like(parameter) * (0.1 if 'backbone' in name else 0.2))
    return model.eval()


def mmdet_file(name, changes) -> Source:
    """A checkpoint as mmdet's Runner writes it, with its config in Python."""
    from mmdet.registry import MODELS

    config = Config(dict(model=mmdet_config(our_config(name))))
    for key, value in changes.items():
        config.merge_from_dict({f'model.{key}': value})
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = noisy(MODELS.build(Config(config.to_dict()).model))
    return source(model.state_dict(), cfg=config.pretty_text)


def transformers_folder(name, changes, folder) -> Source:
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    config = transformers_model(our_config(name)).config
    for key, value in changes.items():
        holder, _, key = key.rpartition('.')
        setattr(config.backbone_config if holder else config, key, value)
    noisy(transformers.DeformableDetrForObjectDetection(config)).save_pretrained(folder)
    return read_checkpoint(folder)


@pytest.fixture(
    params=[('mmdet', n) for n in MMDET] + [('transformers', n) for n in TRANSFORMERS], ids='-'.join
)
def odd(request, tmp_path):
    """(name, file, changes to our config that make it right, what is said without them)."""
    dialect, name = request.param
    theirs, ours, said = (MMDET if dialect == 'mmdet' else TRANSFORMERS)[name]
    file = (
        mmdet_file(name, theirs)
        if dialect == 'mmdet'
        else transformers_folder(name, theirs, tmp_path / 'transformers')
    )
    return name, file, ours, said


def test_what_the_file_says_otherwise_is_named_and_the_numbers_differ(odd):
    """Also where nobody compares the settings: the other model is the file's own."""
    name, file, right, said = odd
    wrong = our_config(name)
    # On no device, as tools/convert_checkpoint.py builds it.
    target = build_ours(wrong, 'meta')
    converted = to_ours(file, target=target.state_dict(), classes='keep')
    assert '; '.join(setting_mismatches(file.meta, converted.dialect, target)) == said
    found = verify(wrong, file, converted)
    assert found.by_config
    assert found.passed == (name in UNSEEN)
    assert found.passed or found.logits > 10 * TOLERANCE, found
    if right is None:
        return
    fitting = our_config(name, right)
    assert setting_mismatches(file.meta, converted.dialect, build_ours(fitting, 'meta')) == []
    found = verify(fitting, file, converted)
    assert found.passed, found


@pytest.mark.parametrize('dialect', ['mmdet', 'transformers'])
def test_the_tool_verifies_by_the_files_config_and_stops_where_it_says_otherwise(
    dialect, tmp_path, capsys
):
    """Encoder and decoder of different heads, which once were given the same."""
    theirs, ours, said = (MMDET if dialect == 'mmdet' else TRANSFORMERS)[
        'heads of cross-attention' if dialect == 'mmdet' else 'heads of the encoder'
    ]
    if dialect == 'mmdet':
        file = tmp_path / 'theirs.pth'
        made = mmdet_file('heads', theirs)
        torch.save({'state_dict': made.state, 'meta': made.meta}, file)
    else:
        file = tmp_path / 'theirs'
        transformers_folder('heads', theirs, file)
    arguments = [str(file), str(tmp_path / 'ours.pth'), '--classes', 'keep', '--verify', '--config']
    wrong = write_config(tmp_path / 'wrong.py', 'base', 5, **BACKBONE)
    with pytest.raises(SystemExit) as stop:
        run_command('convert', [*arguments, str(wrong)])
    assert stop.value.code == (  # printed, and exit status 1
        f'error: nothing to verify with this config: the file is of a model with {said} as in the '
        'config; the weights fit, but detections will be wrong. Change the config; nothing was '
        'written'
    )
    assert not (tmp_path / 'ours.pth').exists()
    right = Config.fromfile(wrong)
    right.model = our_config('heads', ours)
    right.dump(tmp_path / 'right.py')
    run_command('convert', [*arguments, str(tmp_path / 'right.py')])
    assert '\nverified: largest differences on random images: logits' in capsys.readouterr().out
    assert (tmp_path / 'ours.pth').exists()


def test_a_difference_above_the_threshold_fails_with_its_place_and_writes_nothing(
    tmp_path, monkeypatch
):
    theirs, _, said = MMDET['norm of the neck']
    made = mmdet_file('neck', theirs)
    torch.save({'state_dict': made.state, 'meta': made.meta}, tmp_path / 'theirs.pth')
    config = write_config(tmp_path / 'config.py', 'base', 5, **BACKBONE)
    # As for a setting that is not compared.
    monkeypatch.setattr(checkpoints, 'settings_mismatch', lambda *_: [])
    with pytest.raises(SystemExit) as stop:
        run_command(
            'convert',
            [str(tmp_path / 'theirs.pth'), str(tmp_path / 'ours.pth'), '--config', str(config)]
            + ['--classes', 'keep', '--verify'],
        )
    message = str(stop.value.code)
    assert message.startswith('error: verified: no; largest differences on random images: logits ')
    assert f'expected at most {TOLERANCE:.0e}. The largest is at image ' in message
    assert 'the first module with another result is neck.convs.0.gn. Nothing was' in message
    assert not (tmp_path / 'ours.pth').exists()


def test_proposals_in_another_order_are_no_difference(monkeypatch):
    """Two scores that are nearly the same: which comes first, rounding decides."""
    config = bridge_config('two-stage', **BACKBONE)
    file = source(export(build(config).state_dict(), 'mmdet'))
    converted = to_ours(file, classes='keep')
    predictions = verify_module.predictions

    def shuffled(*models):
        (logits, boxes), other = predictions(*models)
        return (logits.flip(1), boxes.flip(1)), other

    monkeypatch.setattr(verify_module, 'predictions', shuffled)
    found = verify(config, file, converted)
    assert found.passed and not found.by_config


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        ("type='DINO'", "is of a DINO, expected mmdet's DeformableDETR"),
        (
            "type='DeformableDETR', backbone=dict(type='subprocess.run', args=['touch', 'x'])",
            r"names 'subprocess.run' in model.backbone, which is none of mmdet's",
        ),
        (
            "type='DeformableDETR', backbone=dict(type='DeformableDETR')",
            "names 'DeformableDETR' in model.backbone",
        ),
        ("type='DeformableDETR', backbone=dict(type=kind)", 'is not written out'),
        ("type='DeformableDETR', backbone=dict(type='ResNet', depth=51)", 'mmdet cannot build'),
    ],
)
def test_a_config_that_cannot_be_built_safely_is_refused(cfg, message):
    """A checkpoint's config is text from elsewhere; mmengine would import what `type` names."""
    state = export(build_ours(our_config('base')).state_dict(), 'mmdet')
    with pytest.raises(ValueError, match=message):
        source_model(state, {'cfg': f'model = dict({cfg})'}, 'mmdet')


def test_a_config_in_pure_python_style_names_classes_with_their_modules():
    made = mmdet_file('base', {})
    text = made.meta['cfg'].replace(
        "type='mmdet.ResNet'", "type='mmdet.models.backbones.resnet.ResNet'"
    )
    assert text != made.meta['cfg']
    built = source_model(made.state, {'cfg': text}, 'mmdet')
    assert type(built.backbone).__module__ == 'mmdet.models.backbones.resnet'


def test_settings_are_read_from_what_mmdet_itself_ships():
    path = Path(mmdet.__file__).parent / '.mim/configs/deformable_detr'
    file = path / 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
    if not file.is_file():
        pytest.skip("mmdet's configs are not installed")
    settings = file_settings({'cfg': Config.fromfile(file).pretty_text}, 'mmdet')
    model = build_ours(Config.fromfile(find_config(file.stem)).model, 'meta')
    assert {*our_settings(model)} == {*settings}
    assert setting_mismatches({'cfg': Config.fromfile(file).pretty_text}, 'mmdet', model) == []


def test_older_folders_of_transformers_name_a_backbone_of_timm():
    """As facebook's and SenseTime's published config.json: no backbone_config."""
    pytest.importorskip('transformers', reason='transformers is not installed')
    config = our_config('base')
    config.backbone = dict(bridge_config('base').backbone)
    config.neck.in_channels = [128, 256, 512]
    theirs = noisy(transformers_model(config))
    words = json.loads(theirs.config.to_json_string(use_diff=False))
    del words['backbone_config']
    words.update(backbone='resnet18', use_timm_backbone=True, use_pretrained_backbone=True)
    file = source(theirs.state_dict(), settings=words)
    converted = to_ours(file, classes='keep')
    found = verify(config, file, converted)
    assert found.passed and found.by_config
    assert file_settings(file.meta, 'transformers')['backbone depth'] == 18


def test_load_from_warns_of_settings_that_weights_do_not_show(tiny_job, tmp_path):
    path = tiny_job()
    config = Config.fromfile(path)
    state = export(build_ours(config.model).state_dict(), 'mmdet')
    cfg = """model = dict(
        type='DeformableDETR',
        positional_encoding=dict(num_feats=16, normalize=True),
        encoder=dict(layer_cfg=dict(ffn_cfg=dict(act_cfg=dict(type='GELU')))))"""
    torch.save({'state_dict': state, 'meta': {'cfg': cfg}}, tmp_path / 'x.pth')
    config.load_from = str(tmp_path / 'x.pth')
    runner = Runner.from_cfg(config)
    runner.call_hook('before_run')
    runner.load_or_resume()
    log = next(tmp_path.glob('work/*/*.log')).read_text()
    assert 'encoder activation gelu, not relu' in log
    assert 'positional encoding offset 0, not -0.5' in log


@pytest.mark.parametrize('kind', KINDS)
def test_our_own_configs_say_what_their_models_are(kind):
    config = Config(dict(model=bridge_config(kind)))
    meta = {'cfg': config.pretty_text}
    model = build_ours(config.model, 'meta')
    # Blocks without bottlenecks have no style.
    assert {*our_settings(model)} - {*file_settings(meta, OURS)} == {'backbone style'}
    assert setting_mismatches(meta, OURS, model) == []


@pytest.mark.parametrize('dialect', ['official', OURS])
def test_files_of_the_release_and_of_our_runner_say_their_heads(dialect, tmp_path, capsys):
    """2 x 4 weights load into 4 x 2, which computes other numbers."""
    model = build_ours(our_config('base'))
    other = our_config('base', {'encoder.layer.self_attn': FOUR_BY_TWO})
    if dialect == OURS:
        cfg = Config(dict(model=other)).pretty_text
        content = {'state_dict': model.state_dict(), 'meta': {'cfg': cfg}}
    else:
        args = argparse.Namespace(nheads=4, enc_n_points=4, dec_n_points=2, dilation=False)
        content = {'model': export(model.state_dict(), dialect), 'args': args}
    torch.save(content, tmp_path / 'theirs.pth')
    config = write_config(tmp_path / 'config.py', 'base', 5, **BACKBONE)
    arguments = [str(tmp_path / 'theirs.pth'), str(tmp_path / 'ours.pth'), '--classes', 'keep']
    run_command('convert', [*arguments, '--config', str(config)])
    said = {OURS: 'encoder heads 2, not 4; encoder points 4, not 2'}
    said = said.get(dialect, 'encoder points 4, not 2')
    line = f'warning: the file is of a model with {said} as in the config; the weights fit'
    assert line in capsys.readouterr().out


def test_without_a_config_the_tool_says_what_is_unusual_and_the_new_file_says_it_again(
    tmp_path, capsys
):
    theirs, _, said = MMDET['GELU']
    made = mmdet_file('GELU', theirs)
    torch.save({'state_dict': made.state, 'meta': made.meta}, tmp_path / 'theirs.pth')
    run_command('convert', [str(tmp_path / 'theirs.pth'), str(tmp_path / 'ours.pth')])
    out = capsys.readouterr().out
    line = next(
        line for line in out.splitlines() if line.startswith('note: the file is of a model')
    )
    assert 'encoder heads 4, not 8' in line
    assert said in line
    converted = read_checkpoint(tmp_path / 'ours.pth')
    model = build_ours(our_config('GELU'), 'meta')
    assert '; '.join(setting_mismatches(converted.meta, OURS, model)) == said


def test_released_settings_are_those_of_the_configs_here():
    path = find_config('deformable-detr_r50_16xb2-50e_coco')
    model = build_ours(Config.fromfile(path).model, 'meta')
    assert RELEASED.keys() <= our_settings(model).keys()
    assert setting_mismatches({'conversion': {'settings': RELEASED}}, OURS, model) == []


def test_weights_that_rounding_alone_changes_are_said_to_be_so(monkeypatch):
    """As those of a training that diverged: two right models differ by more than the tolerance."""
    file = mmdet_file('base', {})
    converted = to_ours(file, classes='keep')
    predictions = verify_module.predictions

    def rounded(one, other, *rows):
        pairs = predictions(one, other, *rows)
        # Each model's own: in float64 there is none.
        error = 0.02 * (next(other.parameters()).dtype == torch.float64 or bool(rows))
        return (pairs[0][0] + error, pairs[0][1]), pairs[1]

    monkeypatch.setattr(verify_module, 'predictions', rounded)
    found = verify(our_config('base'), file, converted)
    assert not found.passed and found.by_rounding
    monkeypatch.setattr(verify_module, 'predictions', predictions)
    wrong = our_config('base', {'positional_encoding': dict(offset=0.0)})
    found = verify(wrong, file, converted)
    assert not found.passed and not found.by_rounding
