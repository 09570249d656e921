"""Checkpoints of mmengine's Runner load with torch's safety on; malicious files do not."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

import ddetr_plugin  # noqa: F401


@pytest.fixture
def checkpoint(tiny_job):
    """(runner, file) of one epoch with EMA, validation, a best score and optimizer state."""
    config = Config.fromfile(
        tiny_job(
            train_cfg=dict(max_epochs=1),
            custom_hooks=[dict(type='EMAHook'), dict(type='ddetr_plugin.RandomStateHook')],
        )
    )
    runner = Runner.from_cfg(config)
    runner.train()
    return runner, os.path.join(runner.work_dir, 'epoch_1.pth')


def test_nothing_in_a_runners_checkpoint_is_outside_the_allow_list(checkpoint):
    runner, file = checkpoint
    best = runner.message_hub.get_info('best_ckpt')
    for path in (file, best):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    content = torch.load(file, weights_only=True)
    assert {'meta', 'state_dict', 'ema_state_dict', 'message_hub', 'optimizer'} <= content.keys()
    losses = content['message_hub']['log_scalars']['train/loss']
    assert isinstance(losses, HistoryBuffer)
    assert losses.data[0].shape == (4,)
    assert losses.mean() == runner.message_hub.get_scalar('train/loss').mean()
    assert content['param_schedulers'][0]['milestones'] == {1: 1}


def test_a_second_runner_tests_the_checkpoint_with_the_same_result(checkpoint):
    runner, file = checkpoint
    metrics = runner.val()
    config = runner.cfg.copy()
    config.load_from = file
    config.experiment_name += '-second'
    assert Runner.from_cfg(config).test() == metrics


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def with_module(file, old, new):
    """The same checkpoint with the module `old` spelled `new` in its pickle."""
    result = io.BytesIO()
    replaced = 0
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(result, 'w') as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith('data.pkl'):
                replaced += data.count(f'c{old}\n'.encode())
                data = data.replace(f'c{old}\n'.encode(), f'c{new}\n'.encode())
            target.writestr(name, data)
    assert replaced
    result.seek(0)
    return result


@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
def test_values_saved_with_either_numpy_are_read(core):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    content = {
        'history': history,
        'best': np.float64(0.5),
        'count': np.int64(3),
        'palette': np.arange(3, dtype=np.uint8),
        'classes': np.array(['cat', 'dog']),
    }
    current = np.empty(0).__reduce__()[0].__module__
    file = saved(content)
    if not current.startswith(f'{core}.'):
        file = with_module(file, current, f'{core}.multiarray')
    loaded = torch.load(file, weights_only=True)
    np.testing.assert_array_equal(loaded['history'].data, history.data)
    assert loaded['history'].statistics('mean') == 2.0
    assert (loaded['best'], loaded['count']) == (0.5, 3)
    assert loaded['palette'].tolist() == [0, 1, 2]
    assert loaded['classes'].tolist() == ['cat', 'dog']


def test_another_librarys_temporary_allow_list_takes_nothing_away():
    with torch.serialization.safe_globals([HistoryBuffer, np.ndarray, np.dtype]):
        pass
    assert torch.load(saved(HistoryBuffer([2.0], [1]))).mean() == 2.0


@pytest.mark.parametrize(
    ('function', 'arguments'),
    [
        (os.system, ('true',)),
        (eval, ('1',)),
        (np.load, ('file',)),
        # The stand-in for getattr opens nothing but the four statistics.
        (getattr, (HistoryBuffer, '__init__')),
        (getattr, (HistoryBuffer, 'register_statistics')),
        (getattr, (np.ndarray, 'tofile')),
    ],
)
def test_a_malicious_checkpoint_is_refused(function, arguments):
    class Attack:
        def __reduce__(self):
            return function, arguments

    file = saved({'state_dict': {}, 'meta': Attack()})
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file)
