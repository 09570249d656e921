"""Every Python block of README and docs is run, page by page, in a folder as a user has it.

A block whose first line is a comment with the name of a file, such as `# my_head.py`, is saved
under that name. If it is a config, mmengine reads it and its model is built; else it is imported.
So is a block that only says `load_from = ...` or `custom_imports = ...`. Other blocks are run.
"""

import importlib
import importlib.util
import re
import shutil
import sys
from unittest import SkipTest

import pytest
import torch
from doc_pages import PAGES, name, parse
from mmengine.config import Config
from mmengine.registry import DefaultScope
from sybil.evaluators.python import PythonEvaluator

import ddetr_plugin

# isort: split
from mmdet.registry import TRANSFORMS

from ddetr_plugin import config_files
from ddetr_plugin.registry import MODELS, TASK_UTILS

FILE = re.compile(r'# ([\w/]+\.py)\n')
CONFIG = re.compile(r'^(_base_|custom_imports|load_from) = ', re.MULTILINE)


def blocks(path):
    return len(list(parse(path, {'python': PythonEvaluator()}).examples()))


PAGES_WITH_BLOCKS = [path for path in PAGES if 'python' in path.read_text() and blocks(path)]


@pytest.fixture
def as_a_user(user_folder, tmp_path, monkeypatch):
    """A folder of the test's own with these files; what a page registers and imports goes again."""
    known = config_files.config_files()
    known['deformable-detr_r50_16xb2-50e_coco'] = user_folder / 'coco.py'
    monkeypatch.setattr(config_files, 'config_files', lambda: known)
    shutil.copytree(user_folder, tmp_path / 'here')
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.syspath_prepend(str(tmp_path / 'here'))
    for registry in (MODELS, TASK_UTILS, TRANSFORMS):
        monkeypatch.setattr(registry, '_module_dict', dict(registry.module_dict))
    # `init_default_scope` makes a new one, which would be that of later tests.
    scopes = type(DefaultScope._instance_dict)(DefaultScope._instance_dict)
    monkeypatch.setattr(DefaultScope, '_instance_dict', scopes)
    modules = set(sys.modules)
    yield
    for module in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[module], '__file__', None)):
            del sys.modules[module]


def build_config(path):
    """Reads a config and builds its model."""
    # `ddetr_plugin.accelerate` would hold for all tests of this process.
    config = Config.fromfile(path, import_custom_modules=False)
    for module in config.get('custom_imports', {}).get('imports', ()):
        assert importlib.util.find_spec(module), f'{path} imports {module}, which there is not'
    if 'model' in config:
        # Without memory for weights, except where a constructor reads numbers from tensors.
        device = 'cpu' if 'EfficientNet' in config.model.backbone.type else 'meta'
        with DefaultScope.overwrite_default_scope('mmdet'), torch.device(device):
            MODELS.build(config.model)


run_script = PythonEvaluator()


def run_block(example):
    source = str(example.parsed)
    named = FILE.match(source)
    is_config = bool(CONFIG.search(source)) and 'import ' not in source
    if not named and not is_config:
        run_script(example)
        return
    path = named[1] if named else f'block_{example.line}.py'
    with open(path, 'w') as file:
        file.write(source)
    importlib.invalidate_caches()
    if is_config:
        build_config(path)
    else:
        importlib.import_module(path.removesuffix('.py'))


@pytest.mark.parametrize('path', PAGES_WITH_BLOCKS, ids=name)
def test_the_python_of_a_page_runs(path, as_a_user):
    for example in parse(path, {'python': run_block}).examples():
        try:
            example.evaluate()
        except SkipTest as reason:
            assert len(str(reason)) > 10, (
                f'{name(path)}, line {example.line}: say why it is skipped'
            )


def test_hardly_a_block_is_left_out():
    skipped = sum(path.read_text().count('<!-- skip: next') for path in PAGES)
    assert skipped <= 2
    assert sum(map(blocks, PAGES_WITH_BLOCKS)) - skipped >= 25
    assert ddetr_plugin.__version__
