"""The CPU kernels among themselves: instruction sets, threads."""

from pathlib import Path

import pytest
import torch
from forked import run_python
from op_cases import case, fused_case, needs_native, outputs_and_gradients

from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_fused, native_load_error

LEVELS = ('default', 'avx2', 'avx512')
SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from op_cases import case, fused_case, outputs_and_gradients
from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_fused
results = {}
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for channels in (1, 8, 30, 32, 64, 71):
        for queries in (4, 150):
            for name, function, make in (
                ('plain', ms_deform_attn, case),
                ('fused', ms_deform_attn_fused, fused_case),
            ):
                value, *rest = make(channels=channels, queries=queries, dtype=wide)
                results[name, channels, queries, str(dtype)] = outputs_and_gradients(
                    function, (value.to(dtype), *rest)
                )
torch.save((torch.ops.ddetr_plugin.cpu_capability(), results), sys.argv[1])
"""
# Sums in float32 differ by their order. In 16 bits such a sum may lie midway between two numbers,
# which are one step apart.
TOLERANCES = {
    'torch.float64': 1e-11,
    'torch.float32': 2e-5,
    'torch.float16': torch.finfo(torch.float16).eps + 2e-5,
    'torch.bfloat16': torch.finfo(torch.bfloat16).eps + 2e-5,
}
pytestmark = needs_native


MODULE = "import runpy; runpy.run_module('ddetr_plugin.ops', run_name='__main__', alter_sys=True)"


def run_with(capability, code, *arguments):
    return run_python(code, *arguments, DDETR_CPU_CAPABILITY=capability)


def test_all_instruction_sets_agree(tmp_path):
    best = torch.ops.ddetr_plugin.cpu_capability()
    results = {}
    for level in LEVELS[: LEVELS.index(best) + 1]:
        path = tmp_path / f'{level}.pt'
        done = run_with(level, SCRIPT, path, Path(__file__).parent)
        assert done.returncode == 0, done.stderr
        used, results[level] = torch.load(path)
        assert used == level
    for level in results:
        for key, baseline in results['default'].items():
            # The cells are the same to the bit; sums differ by fused multiply-adds and order, and
            # round to neighbours where they are stored in 16 bits.
            tolerance = TOLERANCES[key[-1]]
            for ours, theirs in zip(results[level][key], baseline):
                scale = theirs.abs().max().clamp(min=1)
                ours, theirs = ours.double() / scale, theirs.double() / scale
                torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_an_unknown_instruction_set_is_refused():
    done = run_with('sse9', MODULE)
    assert done.returncode != 0
    assert 'DDETR_CPU_CAPABILITY must be default, avx2 or avx512, got sse9' in done.stderr


def test_the_self_check_reports_the_native_operator():
    done = run_with('default', MODULE)
    assert done.returncode == 0, done.stderr
    assert 'backend: native' in done.stdout and 'dispatch level: default' in done.stdout
    assert done.stdout.count('ok: forward') >= 4 and 'FAILED' not in done.stdout


@pytest.fixture
def threads():
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
# One picture and head (work cut by levels and queries), many (cut by head), not packed.
@pytest.mark.parametrize('batch, heads, queries', [(1, 1, 900), (3, 4, 700), (1, 2, 20)])
def test_the_number_of_threads_changes_no_bit(batch, heads, queries, dtype, fused, threads):
    assert native_load_error() is None
    function, make = (ms_deform_attn_fused, fused_case) if fused else (ms_deform_attn, case)
    value, *rest = make(
        batch=batch,
        queries=queries,
        heads=heads,
        channels=32,
        points=4,
        sizes=((20, 23), (5, 7)),
        dtype=torch.float64 if dtype == torch.float64 else torch.float32,
    )
    arguments = (value.to(dtype), *rest)
    threads(1)
    alone = outputs_and_gradients(function, arguments)
    for count in (2, 5):
        threads(count)
        together = outputs_and_gradients(function, arguments)
        assert all(torch.equal(a, b) for a, b in zip(alone, together))
