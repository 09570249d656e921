"""`make test-isa` lowers what it says, and covers what the machine has."""

import os

import pytest
import torch
from forked import run_python
from instruction_sets import AVX2, BEST, LOWEST, NUMERIC, TESTS, in_use, levels

from ddetr_plugin.ops import native_load_error


def test_machines_run_each_level_up_to_their_own():
    assert levels('DEFAULT') == [BEST]
    assert levels('AVX2') == [LOWEST, AVX2, BEST]
    assert [level.ours for level in levels('AVX512')] == ['default', 'avx2', 'avx512', None]


def test_the_files_of_the_numeric_part_are_there():
    assert not [name for name in NUMERIC if not (TESTS / name).exists()]


@pytest.mark.skipif(native_load_error() is not None, reason='the operator is not built')
@pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith('AVX'), reason='no AVX to leave out'
)
def test_the_lowest_level_is_in_use_when_asked_for():
    used = in_use({**os.environ, **LOWEST.environment()})
    assert used == 'oneDNN Intel SSE4.1, torch DEFAULT, operator default'


@pytest.mark.skipif(native_load_error() is not None, reason='the operator is not built')
def test_the_operators_level_is_a_limit_and_never_more_than_the_machine_has():
    code = 'import torch, ddetr_plugin.ops; print(torch.ops.ddetr_plugin.cpu_capability())'
    limited, free = (run_python(code, DDETR_CPU_CAPABILITY=limit) for limit in ('avx512', ''))
    assert limited.returncode == 0, limited.stderr
    assert limited.stdout == free.stdout
