"""Types in configs: names, names with a scope, paths of imports, and classes."""

import pytest
import torch

from ddetr_plugin.config_types import has_type, type_class, type_name

# isort: split
from class_configs import write_with_classes
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import DATASETS
from mmengine.config import Config

from ddetr_plugin.cli import run_command
from ddetr_plugin.compat.panoptic_api import _types
from ddetr_plugin.data_checks import check_config
from ddetr_plugin.datasets.class_names import dataset_classes
from ddetr_plugin.engine.processes import join_gloo_processes

WAYS = ['CocoDataset', 'mmdet.CocoDataset', 'mmdet.datasets.coco.CocoDataset', CocoDataset]


@pytest.mark.parametrize('kind', WAYS, ids=str)
def test_a_type_is_the_same_however_it_is_written(kind):
    config = dict(type=kind)
    assert type_name(config) == 'CocoDataset'
    assert has_type(config, 'VOCDataset', 'CocoDataset') and not has_type(config, 'Coco')
    assert type_class(config, DATASETS) is CocoDataset
    assert dataset_classes(dict(test_dataloader=dict(dataset=config)))[0] == 'person'
    assert list(_types(config)) == ['CocoDataset']


def test_without_a_type_there_is_a_default():
    assert type_name({}) == '' and type_name({}, 'OptimWrapper') == 'OptimWrapper'
    assert not has_type({}, 'OptimWrapper')


@pytest.fixture
def pure(tiny_job, tmp_path):
    """A config in which every type is a class."""
    job = tiny_job(train_cfg=dict(max_epochs=1, val_begin=2))
    return write_with_classes(job, tmp_path / 'pure.py')


def test_a_config_of_classes_has_the_findings_of_one_of_names(pure, tiny_job):
    config = Config.fromfile(pure)
    assert config.train_dataloader.dataset.pipeline[1].type is LoadAnnotations
    assert check_config(config) == check_config(Config.fromfile(tiny_job())) == []


def test_a_config_of_classes_is_trained_and_tested_from_the_command_line(pure, tmp_path, capsys):
    work_dir = str(tmp_path / 'out')
    run_command('train', [str(pure), '--work-dir', work_dir])
    run_command('test', [str(pure), f'{work_dir}/epoch_1.pth', '--work-dir', work_dir])
    assert 'Average Precision' in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason='concerns machines without a GPU')
def test_gloo_processes_take_a_model_wrapper_that_is_a_class(monkeypatch):
    from mmengine.model import MMDistributedDataParallel

    monkeypatch.setenv('RANK', '0')
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    wrapper = dict(type=MMDistributedDataParallel, device_ids=[0])
    config = Config(dict(launcher='pytorch', model_wrapper_cfg=wrapper))
    join_gloo_processes(config)
    assert config.model_wrapper_cfg.device_ids is None
