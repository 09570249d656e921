"""What transformers' save_pretrained writes, through the tool, and back into transformers."""

import shutil
import sys

import pytest
import torch
from bridge_cases import KINDS, bridge_config, ours
from builders import build
from mmengine.config import Config

from ddetr_plugin.checkpoints import export
from ddetr_plugin.checkpoints.parity.other_models import predict_with, transformers_model
from ddetr_plugin.cli import run_command

transformers = pytest.importorskip('transformers', reason='transformers is not installed')
pytest.importorskip('safetensors', reason='safetensors is not installed')

NAMES = ('cat', 'dog', 'cow', 'hen', 'bee')
SHAPES = [(96, 128), (80, 64)]
DC5 = dict(
    backbone=dict(
        type='ddetr_plugin.DilatedResNet', depth=50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)
    ),
    neck=dict(in_channels=[2048]),
)


def random_weights(model):
    """As their model makes them, and as fine-tuning leaves them: heads that are tied stay so."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        # The norms of the backbone, some of which start at zero and would hide a whole branch.
        for name, buffer in model.named_buffers():
            if name.endswith(('running_var', 'weight')):
                buffer.uniform_(0.5, 1.5)
            elif name.endswith(('running_mean', 'bias')):
                buffer.uniform_(-0.1, 0.1)
    return model.eval()


def saved(model, folder, form):
    """Writes the model as one file, as several, or as older releases did."""
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: row for row, name in enumerate(NAMES)}
    if form == 'bin':
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / 'pytorch_model.bin')
    else:
        model.save_pretrained(folder, max_shard_size='5GB' if form == 'safetensors' else '20MB')
    files = {file.suffix for file in folder.iterdir()} - {'.json'}
    assert files == {'.bin' if form == 'bin' else '.safetensors'}
    assert (folder / 'model.safetensors.index.json').exists() == (form == 'shards')


def outputs(model):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.zeros(2, 3, 96, 128)
    for picture, (h, w) in zip(inputs, SHAPES):
        picture[:, :h, :w] = torch.randn(3, h, w, generator=generator)
    return predict_with(model, inputs, SHAPES)


def there_and_back(model_config, theirs, folder, capsys):
    """`folder` through the tool with --verify, and what it writes back into transformers."""
    config = folder.parent / 'config.py'
    Config(
        dict(
            default_scope='mmdet',
            custom_imports=dict(imports=['ddetr_plugin'], allow_failed_imports=False),
            model=model_config,
            train_dataloader=dict(dataset=dict(type='X', metainfo=dict(classes=NAMES))),
        )
    ).dump(config)
    file = folder.parent / 'ours.pth'
    run_command('convert', [str(folder), str(file), '--config', str(config), '--verify'])
    report = capsys.readouterr().out
    (line,) = [line for line in report.splitlines() if line.startswith('verified')]
    logits, boxes = (
        float(word.rstrip(',')) for word in line.split() if 'e-' in word or '0e+' in word
    )
    assert logits < 1e-5
    assert boxes < 1e-6
    assert 'warning' not in report
    assert 'ignored' not in report
    assert ('dilated backbone (DC5)' in report) == ('Dilated' in model_config.backbone.type)

    content = torch.load(file)
    assert content['meta']['dataset_meta']['classes'] == NAMES
    model = build(model_config, seed=9)
    model.load_state_dict(content['state_dict'], strict=True)
    expected = outputs(theirs)
    for mine, other in zip(outputs(model), expected):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)

    again = folder.parent / 'again'
    again.mkdir()
    shutil.copy(folder / 'config.json', again)
    run_command('convert', [str(file), str(again / 'model.safetensors'), '--to', 'transformers'])
    loaded, report = transformers.DeformableDetrForObjectDetection.from_pretrained(
        again, output_loading_info=True
    )
    assert not report['missing_keys']
    assert not report['unexpected_keys']
    for back, other in zip(outputs(loaded.eval()), expected):
        assert torch.equal(back, other)


@pytest.mark.parametrize(
    ('kind', 'form'),
    [(kind, form) for kind in KINDS for form in ('safetensors', 'bin')] + [('base', 'shards')],
)
def test_every_kind_that_transformers_saves_is_converted_and_computes_the_same(
    kind, form, tmp_path, capsys
):
    config = bridge_config(kind)
    theirs = random_weights(transformers_model(config))
    (tmp_path / 'theirs').mkdir()
    saved(theirs, tmp_path / 'theirs', form)
    there_and_back(config, theirs, tmp_path / 'theirs', capsys)


@pytest.mark.parametrize('kind', ['refine', 'two-stage'])
def test_heads_that_differ_from_layer_to_layer_survive_both_ways(kind, tmp_path, capsys):
    """As published weights have them, while new models of transformers tie some."""
    config = bridge_config(kind)
    model = ours(kind)
    theirs = transformers_model(config, export(model.state_dict(), 'transformers')).eval()
    saved(theirs, tmp_path / 'theirs', 'safetensors')
    there_and_back(config, theirs, tmp_path / 'theirs', capsys)


def test_a_dilated_backbone_of_timm_is_converted_and_computes_the_same(tmp_path, capsys):
    pytest.importorskip('timm', reason='timm, whose backbones transformers dilates, is missing')
    config = bridge_config('single-scale', **DC5)
    theirs = random_weights(transformers_model(config))
    saved(theirs, tmp_path / 'theirs', 'safetensors')
    there_and_back(config, theirs, tmp_path / 'theirs', capsys)


def test_where_timm_is_missing_the_error_says_what_it_is_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match='dilated backbones of transformers are those of timm'):
        transformers_model(bridge_config('single-scale', **DC5))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(backbone=dict(type='mmdet.RegNet')), 'needs a ResNet, got RegNet'),
        (dict(backbone=dict(dilations=(1, 1, 1, 2))), r'from its second block on \(D4\)'),
    ],
)
def test_a_backbone_that_transformers_has_not_is_named(changes, message):
    config = Config(dict(model=bridge_config('base')))
    config.merge_from_dict(dict(model=changes))
    with pytest.raises(ValueError, match=message):
        transformers_model(config.model)
