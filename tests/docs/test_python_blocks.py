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

import cv2
import numpy as np
import pytest
import torch
from doc_pages import PAGES, name, parse
from mmengine.config import Config
from mmengine.registry import DefaultScope
from sybil.evaluators.python import PythonEvaluator

import ddetr_plugin

# isort: split
from mmdet.registry import TRANSFORMS

from ddetr_plugin.registry import MODELS, TASK_UTILS

FILE = re.compile(r'# ([\w/]+\.py)\n')
CONFIG = re.compile(r'^(_base_|custom_imports|load_from) = ', re.MULTILINE)
DEMO_CHECKPOINT = 'best_coco_bbox_mAP_iter_2000.pth'


def blocks(path):
    return len(list(parse(path, {'python': PythonEvaluator()}).examples()))


PAGES_WITH_BLOCKS = [path for path in PAGES if 'python' in path.read_text() and blocks(path)]


def small_coco_config():
    """Text of a config like the COCO ones, with their 80 classes, for images of a few pixels."""
    return """
_base_ = 'ddetr_plugin::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
model = dict(
    backbone=dict(depth=18, init_cfg=None),
    neck=dict(in_channels=[128, 256, 512]),
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=1),
    bbox_head=dict(num_layers=1),
)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (96, 96)
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""


def save_weights(config, path):
    """Random weights that fit a config, with the names of its classes as the Runner saves them."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    classes = config.get('metainfo', {}).get('classes') or tuple(map(str, range(80)))
    content = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes)))
    torch.save(content, path)


@pytest.fixture(scope='module')
def user_folder(tmp_path_factory, tiny_coco):
    """What the pages name: images, a data set, what a demo leaves, a checkpoint for COCO."""
    from ddetr_plugin.apis import find_config

    folder = tmp_path_factory.mktemp('user')
    (folder / 'images').mkdir()
    rng = np.random.default_rng(0)
    for target in ('images/a.jpg', 'images/b.jpg', 'image.jpg'):
        cv2.imwrite(str(folder / target), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    shutil.copytree(tiny_coco.root, folder / 'path/to/folder')

    work_dir = folder / 'work_dirs' / 'demo'
    work_dir.mkdir(parents=True)
    config = Config.fromfile(find_config('digits'))
    config.model.backbone.pretrained = False
    config.dump(work_dir / 'digits.py')
    save_weights(config, work_dir / DEMO_CHECKPOINT)

    (folder / 'coco.py').write_text(small_coco_config())
    save_weights(Config.fromfile(folder / 'coco.py'), folder / 'checkpoint.pth')
    return folder


@pytest.fixture
def as_a_user(user_folder, tmp_path, monkeypatch):
    """A folder of the test's own with these files; what a page registers and imports goes again."""
    from ddetr_plugin.apis import config_reading

    find_config = config_reading.find_config

    def find_small(config):
        small = str(config) == 'deformable-detr_r50_16xb2-50e_coco'
        return user_folder / 'coco.py' if small else find_config(config)

    monkeypatch.setattr(config_reading, 'find_config', find_small)
    shutil.copytree(user_folder, tmp_path / 'here')
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.syspath_prepend(str(tmp_path / 'here'))
    for registry in (MODELS, TASK_UTILS, TRANSFORMS):
        monkeypatch.setattr(registry, '_module_dict', dict(registry.module_dict))
    scope = DefaultScope.get_current_instance()
    modules = set(sys.modules)
    yield
    # `init_default_scope` makes a new one, which would be that of other tests.
    if DefaultScope.get_current_instance() is not scope:
        DefaultScope._instance_dict.clear()
    for module in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[module], '__file__', None)):
            del sys.modules[module]


def build_config(path):
    """Reads a config and builds its model, without memory for its weights."""
    # `ddetr_plugin.accelerate` would hold for all tests of this process.
    config = Config.fromfile(path, import_custom_modules=False)
    for module in config.get('custom_imports', {}).get('imports', ()):
        assert importlib.util.find_spec(module), f'{path} imports {module}, which there is not'
    if 'model' in config:
        with DefaultScope.overwrite_default_scope('mmdet'):
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
