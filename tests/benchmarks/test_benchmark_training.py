"""The benchmark of whole models, at its smallest: what it reports, not what it measures."""

import json
import sys
from pathlib import Path

import pytest
from forked import run_forked

from benchmarks import processes
from benchmarks.timing import spread
from benchmarks.training import data_times, memory, models, scaling, turns, worker
from benchmarks.training.run import main
from benchmarks.training.worker import Worker
from ddetr_plugin.config_levels import with_num_levels
from ddetr_plugin.engine import precision

PARTS = {'step', 'forward', 'matching + loss', 'backward', 'optimiser', 'data loading'}
ONE_LAYER = dict(num_layers=1)
CHANGES = dict(
    backbone=dict(depth=18, base_channels=8),
    neck=dict(in_channels=[16, 32, 64]),
    encoder=ONE_LAYER,
    decoder=ONE_LAYER,
    bbox_head=ONE_LAYER,
)
# As many tokens as the two-stage model has queries, or more.
TINY = models.Size(CHANGES, 1, (128, 128))


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command; returns the report. There is a size that is called tiny."""
    monkeypatch.setitem(models.SIZES, 'tiny', TINY)

    def call(*arguments):
        out = tmp_path / 'out' / 'report.json'
        main([*arguments, '--threads', '1', '--rounds', '1', '--out', str(out)])
        return json.loads(out.read_text())

    return call


@pytest.fixture
def no_processes(monkeypatch):
    """Models take turns in this process."""

    class InThisProcess(Worker):
        def wait_until_ready(self):
            pass

        def close(self):
            pass

    monkeypatch.setattr(turns, 'Process', InThisProcess)
    monkeypatch.setattr(turns, 'WARM_UP', 0)


def test_a_training_is_reported_part_by_part(run, no_processes, capsys):
    report = run('--sizes', 'tiny', '--batch', '2', '--profile')
    assert {'device', 'threads', 'torch', 'python', 'commit'} <= report['environment'].keys()
    assert report['environment']['packages']['mmdet'].startswith('3.')
    assert report['variant'] == 'two-stage'
    rows = {(row['part'], row['implementation']): row for row in report['results']}
    shares = rows.pop(('profile', 'ours'))['shares']
    assert {'matrix products and convolutions', 'our operator', 'dropout', 'optimiser'} < {*shares}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())
    assert {part for part, _ in rows} == PARTS
    for part in PARTS:
        mmdet, ours = rows[part, 'mmdet'], rows[part, 'ours']
        assert mmdet['size'] == ours['size'] == 'tiny'
        # A sample is loaded for itself.
        assert mmdet['batch'] == ours['batch'] == (1 if part == 'data loading' else 2)
        assert mmdet['mmdet_over_it'] == ours['times_ours'] == 1
        ratio = mmdet['median_ms'] / ours['median_ms']
        assert mmdet['times_ours'] == ours['mmdet_over_it'] == pytest.approx(ratio, abs=0.01)
    assert rows['data loading', 'ours, LoadImageResized']['median_ms'] > 0
    steps = [rows[part, 'ours']['median_ms'] for part in PARTS - {'step', 'data loading'}]
    assert rows['step', 'ours']['median_ms'] == pytest.approx(sum(steps), rel=1e-3)
    printed = capsys.readouterr().out
    assert all(part in printed for part in PARTS)


def test_predictions_are_compared_in_both_precisions(run, no_processes):
    report = run('--sizes', 'tiny', '--variant', 'base', '--inference', '--amp', 'force')
    rows = {row['implementation']: row for row in report['results']}
    assert {*rows} == {'mmdet', 'ours', 'ours, bfloat16'}
    assert all(row['part'] == 'inference' and row['median_ms'] > 0 for row in rows.values())


def test_the_growth_of_a_step_is_drawn(run, no_processes, monkeypatch, tmp_path):
    from PIL import Image

    monkeypatch.setattr(scaling, 'SWEEPS', {'picture side': (128,)})
    monkeypatch.setitem(models.SIZES, 'small', TINY)
    plot = tmp_path / 'out' / 'growth.png'
    report = run('--scaling', str(plot))
    (row,) = report['results']
    assert (row['quantity'], row['value']) == ('picture side', 128)
    assert row['mmdet_ms'] > 0
    assert row['ours_ms'] > 0
    assert len(row['mmdet_quartiles_ms']) == len(row['ours_quartiles_ms']) == 2
    with Image.open(plot) as picture:
        assert picture.format == 'PNG'
        assert min(picture.size) > 100


@pytest.mark.parametrize('quantity', scaling.SWEEPS)
def test_a_sweep_changes_one_quantity(quantity):
    """Of setups that build: every level of features has its own."""
    value = scaling.SWEEPS[quantity][0]
    usual = scaling.sweep_setup('batch', 2, 'base')
    setup = scaling.sweep_setup(quantity, value, 'base')
    config = models.model_config(setup)
    levels = value if quantity == 'levels' else 4
    assert config.neck.num_outs == levels
    assert with_num_levels(config)['encoder']['num_levels'] == levels
    assert len(config.neck.in_channels) == len(config.backbone.out_indices) == min(levels, 3)
    assert config.query_head.num_queries == (value if quantity == 'queries' else 300)
    assert setup.batch == (value if quantity == 'batch' else usual.batch)
    assert setup.shape == ((value, value) if quantity == 'picture side' else usual.shape)


@pytest.mark.parametrize('name', models.NAMES)
def test_a_process_of_its_own_answers_each_line_with_the_times_of_a_step(name):
    setup = models.Setup('small', 'base', 1, (64, 64), {})
    request = dict(name=name, setup=setup._asdict(), device='cpu', inference=False, threads=1)
    done = run_forked('benchmarks.training.worker', [json.dumps(request)], stdin='false\nfalse\n')
    assert done.returncode == 0, done.stderr
    ready, *answers = done.stdout.splitlines()
    assert ready == 'ready'
    assert len(answers) == 2
    for answer in map(json.loads, answers):
        assert {*answer} == PARTS - {'data loading'}
        assert all(taken > 0 for taken in answer.values())


PLAYED = """
import json, sys
request = json.loads(sys.argv[1])
assert request['setup']['shape'] == [64, 64] and request['threads'] > 0
if request['name'] == 'mmdet':
    raise SystemExit('no such model')
print('ready', flush=True)
for line in sys.stdin:
    print(json.dumps(dict(amp=json.loads(line))), flush=True)
"""


def test_a_model_is_asked_for_its_times_and_named_where_it_cannot_be_built(monkeypatch, capfd):
    command = [sys.executable, '-c', PLAYED]
    monkeypatch.setattr(worker, 'module_command', lambda module, request: [*command, request])
    setup = models.Setup('small', 'base', 1, (64, 64), {})
    process = worker.Process('ours', setup, 'cpu', inference=False)
    process.wait_until_ready()
    assert [process.times(amp) for amp in (False, True)] == [dict(amp=False), dict(amp=True)]
    process.close()
    assert process.process.returncode == 0
    process = worker.Process('mmdet', setup, 'cpu', inference=False)
    with pytest.raises(SystemExit, match='the model of mmdet failed; see above'):
        process.wait_until_ready()
    process.close()
    assert 'no such model' in capfd.readouterr().err


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='this is no Linux')
def test_memory_is_that_of_the_steps_and_less_with_checkpointing():
    # Large enough: at 128 pixels, what checkpoints free is no more than what allocators round up.
    setup = models.Setup('small', 'base', 1, (256, 256), {})
    peaks = {}
    for checkpointing in (False, True):
        request = dict(name='ours', setup=setup._asdict(), device='cpu', threads=1)
        request['checkpointing'] = checkpointing
        done = run_forked('benchmarks.training.memory', [json.dumps(request)])
        assert done.returncode == 0, done.stderr
        peaks[checkpointing] = float(done.stdout)
    # MiB; a gradient and two moments of 17 million parameters are 200 of them.
    assert 200 < peaks[True] < peaks[False] < 2000


def test_a_measurement_of_memory_that_fails_says_what_the_process_wrote(monkeypatch):
    failing = [sys.executable, '-c', 'raise SystemExit("no memory is known")']
    monkeypatch.setattr(processes, 'module_command', lambda *_: failing)
    setup = models.Setup('small', 'base', 1, (64, 64), {})
    with pytest.raises(SystemExit, match='measuring memory failed:\nno memory is known'):
        memory.peak_memory('ours', setup, 'cpu')


def test_a_short_training_says_how_long_it_waits_for_data(capsys):
    data_times.main(1, steps=3, picture_size=(64, 48))
    waits = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < waits['data_time_ms'] <= waits['longest_wait_ms'] < waits['step_ms']


def test_the_pipelines_compared_make_samples_of_the_same_size(tmp_path):
    from mmdet.datasets import CocoDataset
    from mmengine.dataset import Compose
    from mmengine.registry import DefaultScope

    data_times.make_data(tmp_path, 1, (64, 48))
    metainfo = dict(classes=tuple(str(n) for n in range(10)))
    files = dict(data_root=str(tmp_path), ann_file='annotations.json', data_prefix=dict(img=''))
    data = CocoDataset(pipeline=[], metainfo=metainfo, **files)
    shapes = set()
    with DefaultScope.overwrite_default_scope('mmdet'):
        for steps in data_times.pipelines((24, 40)).values():
            sample = Compose(steps)(data.get_data_info(0))
            assert len(sample['data_samples'].gt_instances) == data_times.BOXES
            shapes.add(tuple(sample['inputs'].shape))
    assert shapes == {(3, 24, 32)}


def test_the_spread_of_one_time_is_that_time():
    assert spread([2.0]) == {'median_ms': 2.0, 'quartiles_ms': [2.0, 2.0]}
    assert spread([1.0, 2.0, 3.0]) == {'median_ms': 2.0, 'quartiles_ms': [1.0, 3.0]}


def test_a_comparison_in_16_bits_is_refused_on_a_cpu_that_is_slower_with_them(monkeypatch, capsys):
    monkeypatch.setattr(precision, 'time_ratio', lambda dtype: 9.0)
    with pytest.raises(SystemExit):
        main(['--amp'])
    assert '9.0 times as long' in capsys.readouterr().err


def test_help_names_every_option_that_a_user_may_give(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['--help'])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith('usage: python -m benchmarks.training ')
    for option in ('--sizes', '--inference', '--amp', '--memory', '--data', '--scaling', '--out'):
        assert option in printed
