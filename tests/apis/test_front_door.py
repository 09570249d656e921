"""What `ddetr_plugin.apis` offers, and what the functions behind the commands do for a program."""

import ast
import importlib
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ddetr_plugin import apis
from ddetr_plugin.apis.config_reading import load_config
from ddetr_plugin.apis.configs import list_configs
from ddetr_plugin.apis.overrides import refuse_unread
from ddetr_plugin.data_checks import DataError


def test_every_name_is_there_and_known_to_type_checkers():
    tree = ast.parse(Path(apis.__file__).read_text())
    checked = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != 'typing'
        for alias in node.names
    }
    assert sorted(checked) == apis.__all__ == sorted(apis._HOMES)
    for name, module in checked.items():
        assert getattr(apis, name) is getattr(importlib.import_module(module), name)
        assert getattr(apis, name).__doc__
    assert set(apis.__all__) <= set(dir(apis))
    with pytest.raises(AttributeError, match="no attribute 'detektor'"):
        apis.detektor  # noqa: B018


@pytest.fixture
def job(tiny_job):
    return tiny_job(train_cfg=dict(max_epochs=1, val_begin=2))


def test_a_program_trains_evaluates_and_detects(job, tiny_coco, tmp_path, capsys):
    config = Config.fromfile(job)
    before = config.pretty_text
    lines = []
    runner = apis.train(config, tmp_path / 'out', log=lines.append)
    checkpoint = tmp_path / 'out' / 'epoch_1.pth'
    assert runner.work_dir == str(tmp_path / 'out') and checkpoint.is_file() and lines == []
    metrics = apis.evaluate(config, checkpoint, tmp_path / 'test')
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    assert config.pretty_text == before
    detector = apis.Detector(config, checkpoint, 'cpu')
    assert len(list(detector(tiny_coco.images))) == 8


def test_an_error_is_raised_and_ends_no_program(job, tiny_coco, tmp_path):
    content = json.loads(tiny_coco.annotations.read_text())
    content['annotations'][0]['category_id'] = 99
    file = tmp_path / 'broken.json'
    file.write_text(json.dumps(content))
    change = {'train_dataloader.dataset.ann_file': str(file)}
    lines = []
    with pytest.raises(DataError, match='annotations of unknown classes.*Correct it') as raised:
        apis.train(job, tmp_path / 'out', overrides=change, log=lines.append)
    assert any(finding.level == 'error' for finding in raised.value.findings)
    assert any('unknown classes' in line for line in lines)
    with pytest.raises(FileNotFoundError, match='config gone.py does not exist'):
        apis.train('gone.py')
    with pytest.raises(FileNotFoundError, match=r'checkpoint gone\.pth does not exist'):
        apis.evaluate(job, 'gone.pth')
    with pytest.raises(ValueError, match='not for'):
        apis.convert('gone.pth', tmp_path / 'x.pth', to='keras')
    with pytest.raises(ValueError, match='name a folder, a config, or both'):
        apis.check_data()
    with pytest.raises(FileNotFoundError, match='dta does not exist'):
        apis.demo('dta', log=lines.append)


def test_data_is_checked_for_a_program(job, tiny_coco, tmp_path):
    report = apis.check_data(config=job)
    assert report.usable and report.findings == [] and report.data is None
    report = apis.check_data(tiny_coco.annotations, boxes='pixels', write=tmp_path / 'out')
    assert report.usable and len(report.data.train.content['images']) == 8
    report = apis.check_data(config=Config(dict(train_dataloader=None)))
    assert not report.checked and not report.usable


def test_weights_are_converted_for_a_program(tmp_path):
    from builders import build, tiny_config

    from ddetr_plugin.checkpoints import export

    state = build(tiny_config()).state_dict()
    torch.save(dict(model=export(state, 'official')), tmp_path / 'official.pth')
    lines = apis.convert(tmp_path / 'official.pth', tmp_path / 'ours.pth')
    assert any('written by: official' in line for line in lines)
    converted = torch.load(tmp_path / 'ours.pth')['state_dict']
    # Official files do not count batches.
    assert converted.keys() == {n for n in state if not n.endswith('num_batches_tracked')}
    assert all(torch.equal(converted[name], state[name]) for name in converted)


def test_a_config_is_found_by_name_and_read_once_for_each_caller():
    name = list_configs()[0].name
    first, second = load_config(name), load_config(name)
    assert first.filename == second.filename and Path(first.filename).stem == name
    first.model.clear()
    assert second.model
    again = load_config(second, {'model.with_value': 3}, 'here')
    assert (again.model.with_value, again.work_dir) == (3, 'here')
    assert 'with_value' not in second.model and second.work_dir == f'work_dirs/{name}'


@pytest.mark.parametrize(
    ('text', 'message'),
    [('{', 'is not valid Python'), ('model = dict(', 'is not valid Python')],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path, text, message):
    (tmp_path / 'config.py').write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / 'config.py')


def test_an_override_that_nothing_reads_is_refused_in_every_command(job, tmp_path):
    for call in (
        lambda options: apis.train(job, overrides=options),
        lambda options: apis.evaluate(job, tmp_path / 'weights.pth', overrides=options),
    ):
        with pytest.raises(ValueError, match=r'num_queries would have no effect.*used: model\.que'):
            call({'num_queries': 7})
    for key in ('train_cfg.max_epochs', 'work_dir', 'strategy.type', 'metainfo.classes'):
        refuse_unread(load_config(job), [key])
    # A Runner of another kind may read anything.
    refuse_unread(Config(dict(runner_type='Other')), ['anything'])
