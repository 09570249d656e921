"""The comparison of a demo in mixed precision with one in float32."""

import sys

import pytest
import torch
from mmengine.config import DictAction

from benchmarks import processes
from benchmarks.long_runs import amp_accuracy, rounded_products
from benchmarks.long_runs.rounded_products import RoundedProducts
from ddetr_plugin.apis.own_data import DEMO_CONFIG, read_config


def metrics(*maps):
    names = ('float32', 'bfloat16')
    return {name: dict(bbox_mAP=x, train_seconds=60.0) for name, x in zip(names, maps)}


@pytest.mark.parametrize(
    ('low', 'near'), [(0.62, True), (0.605, True), (0.64, True), (0.59, False), (0.65, False)]
)
def test_an_accuracy_further_away_than_two_hundredths_fails(low, near, capsys):
    assert amp_accuracy.compare(metrics(0.62, low)) == near
    assert f'| bfloat16 | {low:.3f} | {low - 0.62:+.3f} | 1.0 min |' in capsys.readouterr().out


def test_the_first_training_is_in_float32_and_the_others_under_autocast(tmp_path):
    kinds = []
    for options in amp_accuracy.OPTIONS.values():
        pairs = [x.split('=') for x in options if '=' in x]
        overrides = {key: DictAction._parse_int_float_bool(value) for key, value in pairs}
        wrapper = read_config(DEMO_CONFIG, overrides, tmp_path).optim_wrapper
        kinds.append((wrapper.type, wrapper.get('dtype')))
    autocast = 'ddetr_plugin.AutocastOptimWrapper'
    assert kinds == [('OptimWrapper', None), (autocast, 'bfloat16'), (autocast, 'float16')]


@pytest.mark.parametrize(('narrow', 'digits'), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_products_are_those_of_16_bits_rounded_once(narrow, digits):
    """Within half a unit in the last place of float64, in the forward and the backward pass."""
    generator = torch.Generator().manual_seed(0)
    a, b, image, kernel = (
        torch.randn(shape, generator=generator).to(narrow)
        for shape in ((70, 50), (50, 30), (2, 6, 9, 11), (4, 6, 3, 3))
    )

    def products(dtype):
        given = [x.to(dtype).requires_grad_() for x in (a, b, image, kernel)]
        out = [given[0] @ given[1], torch.conv2d(*given[2:], padding=1)]
        return [*out, *torch.autograd.grad(out, given, [torch.ones_like(x) for x in out])]

    with RoundedProducts():
        found = products(narrow)
        assert (a.float() @ b.float()).dtype == torch.float32
    for x, exact in zip(found, products(torch.float64)):
        assert x.dtype == narrow
        torch.testing.assert_close(x.double(), exact, rtol=2.0**-digits, atol=1e-5)


def test_a_tool_is_run_with_them_and_with_its_own_arguments(tmp_path, monkeypatch, capsys):
    tool = tmp_path / 'tool.py'
    tool.write_text(
        'import sys\n'
        'from torch.utils._python_dispatch import _get_current_dispatch_mode as mode\n'
        'print(sys.argv[1:], type(mode()).__name__, __name__)\n'
    )
    monkeypatch.setattr(sys, 'argv', ['rounded_products.py', str(tool), '--iters', '3'])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    rounded_products.main()
    assert capsys.readouterr().out == "['--iters', '3'] RoundedProducts __main__\n"
    monkeypatch.setattr(sys, 'argv', ['rounded_products.py'])
    with pytest.raises(SystemExit, match='usage'):
        rounded_products.main()


@pytest.mark.parametrize(
    ('found', 'message'),
    [
        (dict(float32=0.6, bfloat16=0.61, float16=0.59), None),
        (dict(float32=0.6, bfloat16=0.61, float16=0.57), 'changes mAP by more than 0.02'),
        (dict(float32=0.0, bfloat16=0.0, float16=0.0), 'too low to tell'),
    ],
)
def test_the_exit_status_says_what_came_out(monkeypatch, found, message):
    def train(name, work_dir, iters):
        return dict(bbox_mAP=found[name], train_seconds=1.0)

    monkeypatch.setattr(amp_accuracy, 'train', train)
    if message is None:
        amp_accuracy.main([])
        return
    with pytest.raises(SystemExit, match=message):
        amp_accuracy.main([])


def test_trainings_that_fail_end_the_comparison(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, 'ROOT', tmp_path)  # without tools/demo.py
    with pytest.raises(SystemExit) as stopped:
        amp_accuracy.main(['--work-dir', str(tmp_path)])
    assert stopped.value.code == 2


@pytest.mark.parametrize(('ratio', 'slow'), [(0.9, False), (9.0, True)])
def test_a_cpu_that_is_slower_in_16_bits_takes_the_products_of_float32(
    monkeypatch, tmp_path, ratio, slow
):
    commands = []

    def run(command, check, env):
        commands.append(command)
        folder = tmp_path / ('float32' if len(commands) == 1 else 'bfloat16')
        folder.mkdir()
        (folder / 'metrics.json').write_text('{}')

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(amp_accuracy, 'time_ratio', lambda dtype: ratio)
    monkeypatch.setattr(amp_accuracy.subprocess, 'run', run)
    for precision in ('float32', 'bfloat16'):
        amp_accuracy.train(precision, tmp_path, None)
    products = ['-m', 'benchmarks.long_runs.rounded_products', str(processes.tool('demo'))]
    assert [products == command[3:6] for command in commands] == [False, slow]
