"""--amp and 16-bit configs on machines that are faster and slower with 16 bits."""

import warnings

import pytest
import torch
from mmengine.config import Config
from test_tools import train_config

from ddetr_plugin.apis.config_reading import load_config
from ddetr_plugin.apis.testing import prepare_test
from ddetr_plugin.cli import make_parser, run_command
from ddetr_plugin.engine import precision
from ddetr_plugin.engine.precision import SlowPrecisionError, set_precision, time_ratio

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='concerns machines without a GPU')
AUTOCAST = 'ddetr_plugin.AutocastOptimWrapper'


@pytest.fixture
def asked(monkeypatch):
    """Dtypes that were measured, on a machine that takes `ratio` times as long in 16 bits."""

    class Asked(list):
        ratio = 12.34

    found = Asked()

    def time_ratio(dtype):
        found.append(dtype)
        return found.ratio

    monkeypatch.setattr(precision, 'time_ratio', time_ratio)
    return found


def test_the_ratio_is_that_of_medians_of_products_and_convolutions():
    calls = []

    def seconds(call):
        result = call()
        calls.append(result)
        # The first of each kind takes long, and so does one of the others.
        late = 100.0 if len(calls) in (1, 2, 3, 4, 9) else 0.0
        product = result.dim() == 2
        return late + {torch.float32: (1.0, 3.0), torch.bfloat16: (2.0, 8.0)}[result.dtype][product]

    assert time_ratio(torch.bfloat16, seconds) == pytest.approx((2 + 8) / (1 + 3))


def test_the_real_measurement_leaves_random_numbers_and_autocast_alone():
    state = torch.get_rng_state()
    with torch.autocast('cpu', torch.float16):
        assert 0 < time_ratio(torch.bfloat16) < 1e4
        assert torch.is_autocast_enabled('cpu')
    assert torch.equal(torch.get_rng_state(), state)


@on_cpu
@pytest.mark.parametrize('name', ['train', 'test'])
def test_amp_is_refused_with_the_ratio_and_the_remedies(name, asked, tiny_job, tmp_path, capsys):
    (tmp_path / 'weights.pth').touch()
    weights = [str(tmp_path / 'weights.pth')] if name == 'test' else []
    with pytest.raises(SystemExit):
        run_command(name, [str(tiny_job()), *weights, '--amp'])
    text = ' '.join(capsys.readouterr().err.split())
    assert '12.3 times as long' in text and 'in bfloat16 as in float32' in text
    assert 'Leave --amp out' in text and '--amp force' in text
    assert asked == [torch.bfloat16]


@on_cpu
def test_amp_is_taken_where_16_bits_are_no_slower(asked, tiny_job):
    asked.ratio = 1.0
    before = Config.fromfile(tiny_job()).optim_wrapper
    after = train_config(tiny_job(), '--amp').optim_wrapper
    assert after.pop('type') == AUTOCAST
    before.pop('type')
    assert after == before


@on_cpu
def test_amp_force_trains_and_tests_without_a_measurement(asked, tiny_job, tmp_path, capsys):
    job = tiny_job(train_cfg=dict(max_epochs=1, val_begin=2))
    work_dir = str(tmp_path / 'amp')
    run_command('train', [str(job), '--work-dir', work_dir, '--amp', 'force'])
    weights = torch.load(tmp_path / 'amp' / 'epoch_1.pth')['state_dict']
    assert all(torch.isfinite(w).all() for w in weights.values())
    seen = []

    def spy(tensor, *arguments, **settings):
        seen.append(torch.is_autocast_enabled('cpu'))
        return original(tensor, *arguments, **settings)

    original, torch.nn.functional.linear = torch.nn.functional.linear, spy
    try:
        test = [str(job), f'{work_dir}/epoch_1.pth', '--work-dir', work_dir, '--amp', 'force']
        run_command('test', test)
    finally:
        torch.nn.functional.linear = original
    assert any(seen)  # the offsets stay outside autocast
    assert 'Average Precision' in capsys.readouterr().out
    assert asked == []


def test_on_a_gpu_amp_is_scaled_float16_and_nothing_is_measured(asked, tiny_job, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    config = load_config(tiny_job())
    set_precision(config, 'auto')
    wrapper = config.optim_wrapper
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')
    assert asked == []


def test_amp_of_a_sharded_training_is_bfloat16_also_on_a_gpu(asked, tiny_job, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    config = load_config(tiny_job())
    config.strategy = dict(type='ddetr_plugin.ShardingStrategy')
    set_precision(config, 'auto')
    assert config.optim_wrapper.type == AUTOCAST
    assert asked == []


@on_cpu
@pytest.mark.parametrize(('rank', 'refused'), [('0', True), ('1', False)])
def test_of_several_processes_the_first_decides(asked, tiny_job, monkeypatch, rank, refused):
    """As for the data check: where it stops, the launcher stops the others."""
    monkeypatch.setenv('RANK', rank)
    config = load_config(tiny_job(), launcher='pytorch')
    if refused:
        with pytest.raises(SlowPrecisionError):
            set_precision(config, 'auto')
    else:
        set_precision(config, 'auto')
        assert config.optim_wrapper.type == AUTOCAST
        assert asked == []


def test_amp_does_not_replace_an_optim_wrapper_of_another_kind(asked, tiny_job):
    config = tiny_job(optim_wrapper=dict(type='ApexOptimWrapper'))
    with pytest.raises(ValueError, match='ApexOptimWrapper'):
        train_config(config, '--amp')


def test_amp_takes_no_other_value(tiny_job, capsys):
    with pytest.raises(SystemExit):
        make_parser('train').parse_args(['--amp', str(tiny_job())])
    assert "takes no value or 'force', got" in capsys.readouterr().err


@on_cpu
def test_a_config_in_16_bits_is_warned_of_where_they_are_slower(asked, tiny_job):
    wrapper = dict(type=AUTOCAST, dtype='float16')
    job = tiny_job(optim_wrapper=wrapper, val_cfg=dict(fp16=True))
    with pytest.warns(UserWarning, match='12.3 times as long') as caught:
        train_config(job)
    assert asked == [torch.float16, torch.bfloat16]
    texts = [str(warning.message) for warning in caught]
    assert any('AutocastOptimWrapper' in text and 'in float16' in text for text in texts)
    assert any('val_cfg.fp16' in text for text in texts)
    with pytest.raises(SlowPrecisionError, match='in float16 as in float32'):
        train_config(job, '--amp')
    asked.ratio = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert train_config(job, '--amp').optim_wrapper.dtype == 'float16'
        train_config(job)


@on_cpu
def test_a_test_in_16_bits_is_warned_of_where_they_are_slower(asked, tiny_job, tmp_path):
    (tmp_path / 'weights.pth').touch()
    job = tiny_job(test_cfg=dict(fp16=True))
    with pytest.warns(UserWarning, match=r'test_cfg.fp16.*12.3 times as long'):
        prepare_test(job, tmp_path / 'weights.pth')


@on_cpu
def test_a_config_in_float32_measures_nothing(asked, tiny_job):
    train_config(tiny_job())
    assert asked == []


@on_cpu
def test_a_wrapper_that_needs_a_gpu_is_refused_with_the_one_that_does_not(tiny_job):
    job = tiny_job(optim_wrapper=dict(type='AmpOptimWrapper'))
    with pytest.raises(ValueError, match='needs a GPU; on a CPU use .*AutocastOptimWrapper'):
        train_config(job)
