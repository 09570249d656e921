"""A checkpoint that wants to run something is refused, whichever way it comes in."""

import ast
import os
from pathlib import Path

import pytest
import torch
from forked import run_python
from mmengine.runner import CheckpointLoader

from ddetr_plugin.checkpoints import CheckpointFileError, install_checkpoint_loader
from ddetr_plugin.cli import run_command
from ddetr_plugin.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]


class Attack:
    """Makes the file `mark` when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / 'it_ran'


@pytest.fixture
def malicious(tmp_path, mark):
    """A file that looks like a Runner's, with an attack in its meta data."""
    path = tmp_path / 'malicious.pth'
    torch.save({'state_dict': {'x.weight': torch.ones(1)}, 'meta': Attack(mark)}, path)
    return path


@pytest.fixture
def refused(malicious, mark, capsys):
    """Runs a command, and checks that it ends with a message and without running anything."""

    def check(command, arguments):
        with pytest.raises(SystemExit) as stopped:
            run_command(command, [str(argument) for argument in arguments])
        message = f'{stopped.value.code} {capsys.readouterr().err}'
        assert 'malicious.pth is not only weights: its pickle asks to run' in message
        assert 'system. Nothing was run.' in message
        assert 'Traceback' not in message and 'weights_only' not in message
        assert not mark.exists()

    return check


def test_the_attack_works_where_nothing_refuses_it(malicious, mark):
    """The premise of all others."""
    torch.load(malicious, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize(
    'options', [['--cfg-options', 'load_from={}'], ['--resume', '{}']], ids=['load_from', 'resume']
)
def test_training_refuses_it(tiny_job, malicious, refused, options):
    options = [option.format(malicious) for option in options]
    refused('train', [tiny_job(train_cfg=dict(max_epochs=1)), *options])


def test_testing_refuses_it(tiny_job, malicious, refused):
    refused('test', [tiny_job(), malicious])


def test_converting_refuses_it(malicious, refused, tmp_path):
    refused('convert', [malicious, tmp_path / 'out.pth'])


def test_predicting_refuses_it(tiny_job, tiny_coco, malicious, refused, tmp_path):
    refused('predict', [tiny_coco.images, tiny_job(), malicious, '--out', tmp_path / 'out'])


VIT = dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=8)


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='mmdet.ResNet', depth=18),
        dict(type='ddetr_plugin.EfficientNetLite0'),
        dict(type='ddetr_plugin.VisionTransformer', **VIT),
    ],
    ids=lambda backbone: backbone['type'],
)
@pytest.mark.parametrize('environment', ['', '1'])
def test_a_backbone_refuses_it_even_where_the_environment_switches_the_safety_off(
    backbone, malicious, mark, monkeypatch, environment
):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', environment)
    init = dict(type='Pretrained', checkpoint=str(malicious))
    model = MODELS.build(dict(backbone, init_cfg=init))
    with pytest.raises(CheckpointFileError, match='asks to run posix.system'):
        model.init_weights()
    assert not mark.exists()


def test_a_downloaded_file_is_refused(malicious, mark, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    # As if downloaded before.
    malicious.rename(cache / 'malicious.pth')
    install_checkpoint_loader()
    with pytest.raises(Exception, match='posix.system'):
        CheckpointLoader.load_checkpoint('https://example.org/malicious.pth')
    assert not mark.exists()


def test_a_config_without_anything_of_ours_loads_as_safely(malicious, mark):
    """The tools install the loader themselves: no component of ours has to be built for it."""
    code = (
        'import sys, ddetr_plugin\n'
        'from ddetr_plugin.apis import launch\n'
        'from mmengine.runner import CheckpointLoader\n'
        'class Config(dict):\n'
        '    launcher = "none"\n'
        'try: launch.build_runner(Config())\n'
        'except Exception: pass\n'
        'CheckpointLoader.load_checkpoint(sys.argv[1], "cpu")\n'
    )
    done = run_python(code, malicious, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1')
    assert 'CheckpointFileError' in done.stderr
    assert not mark.exists()


# Functions that run what is in a file, by the name of the module and theirs.
UNSAFE = {
    ('pickle', 'load'), ('pickle', 'loads'), ('pickle', 'Unpickler'), ('joblib', 'load'),
    ('dill', 'load'), ('cloudpickle', 'load'), ('yaml', 'load'), ('yaml', 'unsafe_load'),
    ('marshal', 'load'), ('marshal', 'loads'), ('shelve', 'open'), ('hub', 'load'),
    ('hub', 'load_state_dict_from_url'), ('model_zoo', 'load_url'), ('pd', 'read_pickle'),
}  # fmt: skip


def test_every_load_in_the_sources_says_that_it_takes_weights_only():
    """Only `--trust` does not."""
    trusting, checked = [], 0
    for path in [*ROOT.glob('ddetr_plugin/**/*.py'), *ROOT.glob('tools/*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            function = node.func if isinstance(node, ast.Call) else None
            if not isinstance(function, ast.Attribute):
                continue
            owner = ast.unparse(function.value).split('.')[-1]
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert (owner, function.attr) not in UNSAFE, (path, node.lineno)
            assert keywords.get('allow_pickle', 'False') == 'False', (path, node.lineno)
            if (owner, function.attr) == ('torch', 'load'):
                checked += 1
                if keywords.get('weights_only') != 'True':
                    trusting.append(path.name)
    assert checked >= 3
    assert trusting == ['safe_loading.py']
