"""Settings for data workers where there are none."""

import copy
import warnings
from pathlib import Path

import pytest
from mmengine.config import Config
from torch.utils.data import DataLoader

from ddetr_plugin.cli import run_command
from ddetr_plugin.engine.data_workers import FOR_WORKERS, drop_worker_settings

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = dict(
    persistent_workers=True, prefetch_factor=4, multiprocessing_context='fork', timeout=9
)


def test_every_setting_that_torch_refuses_without_workers_is_left_out():
    assert SETTINGS.keys() == set(FOR_WORKERS)
    for key, value in SETTINGS.items():
        with pytest.raises((ValueError, AssertionError)):
            iter(DataLoader([1], num_workers=0, **{key: value}))
    loader = dict(num_workers=0, batch_size=2, **SETTINGS)
    config = Config(dict(val_dataloader=loader, train_dataloader=None))
    before = config.val_dataloader
    with pytest.warns(UserWarning, match='val_dataloader has num_workers=0: persistent_workers, '):
        drop_worker_settings(config)
    assert config.val_dataloader == dict(num_workers=0, batch_size=2)
    assert before == loader  # others may hold it
    next(iter(DataLoader([1, 2], **config.val_dataloader)))


def test_with_workers_or_without_such_settings_nothing_is_said():
    config = Config(
        dict(
            train_dataloader=dict(num_workers=1, **SETTINGS),
            val_dataloader=dict(num_workers=0, persistent_workers=False, prefetch_factor=None),
        )
    )
    before = copy.deepcopy(config.train_dataloader)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        drop_worker_settings(config)
    assert config.train_dataloader == before
    next(iter(DataLoader([1], **config.val_dataloader)))


@pytest.mark.filterwarnings('ignore:.*for data workers')
def test_a_shipped_setting_for_workers_does_not_stop_a_training_without_them(tiny_job, tmp_path):
    base = Config.fromfile(ROOT / 'configs' / '_base_' / 'datasets' / 'coco_detection.py')
    assert base.train_dataloader.persistent_workers and base.val_dataloader.persistent_workers
    job = tiny_job(
        **{
            'train_cfg': dict(max_epochs=1, val_interval=1),
            'train_dataloader.persistent_workers': True,
            'train_dataloader.prefetch_factor': 2,
            'val_dataloader.persistent_workers': True,
        }
    )
    assert Config.fromfile(job).train_dataloader.num_workers == 0
    work_dir = tmp_path / 'out'
    run_command('train', [str(job), '--work-dir', str(work_dir)])
    assert (work_dir / 'epoch_1.pth').is_file()
