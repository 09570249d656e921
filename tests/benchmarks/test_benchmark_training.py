"""The benchmark of whole models, at its smallest: what it reports, not what it measures."""

import json
import subprocess
import sys

import pytest

from benchmarks.processes import variables
from benchmarks.timing import spread
from benchmarks.training import data_times
from benchmarks.training import run as benchmark_training
from ddetr_plugin.engine import precision

PARTS = {'step', 'forward', 'matching + loss', 'backward', 'optimiser', 'data loading'}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the tool in this process, its workers in others; returns the report."""

    def call(*arguments):
        out = tmp_path / 'out' / 'report.json'
        monkeypatch.setattr(sys, 'argv', ['benchmark_training.py', *arguments, '--out', str(out)])
        benchmark_training.main()
        return json.loads(out.read_text())

    return call


def test_a_training_is_reported_part_by_part(run, capsys):
    report = run('--sizes', 'demo', '--batch', '1', '--rounds', '1', '--threads', '1', '--profile')
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
        assert mmdet['size'] == ours['size'] == 'demo'
        assert mmdet['batch'] == ours['batch'] == 1
        assert mmdet['mmdet_over_it'] == ours['times_ours'] == 1
        ratio = mmdet['median_ms'] / ours['median_ms']
        assert mmdet['times_ours'] == ours['mmdet_over_it'] == pytest.approx(ratio, abs=0.01)
    assert rows['data loading', 'ours, LoadImageResized']['median_ms'] > 0
    steps = [rows[part, 'ours']['median_ms'] for part in PARTS - {'step', 'data loading'}]
    assert rows['step', 'ours']['median_ms'] == pytest.approx(sum(steps), rel=1e-3)
    printed = capsys.readouterr().out
    assert all(part in printed for part in PARTS)


def test_the_growth_of_a_step_is_drawn(run, monkeypatch, tmp_path):
    from PIL import Image

    monkeypatch.setattr(benchmark_training, 'SWEEPS', {'picture side': (160,)})
    plot = tmp_path / 'out' / 'growth.png'
    report = run('--scaling', str(plot), '--rounds', '1', '--threads', '1')
    (row,) = report['results']
    assert (row['quantity'], row['value']) == ('picture side', 160)
    assert row['mmdet_ms'] > 0
    assert row['ours_ms'] > 0
    assert len(row['mmdet_quartiles_ms']) == len(row['ours_quartiles_ms']) == 2
    with Image.open(plot) as picture:
        assert picture.format == 'PNG'
        assert min(picture.size) > 100


def test_a_short_training_says_how_long_it_waits_for_data():
    code = """
import json
from benchmarks.training.data_times import training_waits
print(json.dumps(training_waits(3, (64, 48))))
"""
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env=variables(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    waits = json.loads(done.stdout.splitlines()[-1])
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
    monkeypatch.setattr(sys, 'argv', ['benchmark_training.py', '--amp'])
    with pytest.raises(SystemExit):
        benchmark_training.main()
    assert '9.0 times as long' in capsys.readouterr().err


def test_help_names_every_option_that_a_user_may_give(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['benchmark_training.py', '--help'])
    with pytest.raises(SystemExit) as stop:
        benchmark_training.main()
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for option in ('--sizes', '--inference', '--amp', '--memory', '--data', '--scaling', '--out'):
        assert option in printed
    assert '--worker' not in printed
