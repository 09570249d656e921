"""The CUDA sources as nvcc compiles them, also where there is no GPU and torch has no CUDA."""

import functools
import json
import subprocess
from pathlib import Path

import pytest
from made_once import made_once

from benchmarks.op import count_instructions as tool
from benchmarks.op import kernel_usage

ROOT = Path(__file__).resolve().parents[2]
needs_nvcc = pytest.mark.skipif(tool.toolkit('nvcc') is None, reason='nvcc is not installed')
needs_disassembler = pytest.mark.skipif(
    tool.toolkit('nvcc') is None or tool.toolkit('nvdisasm') is None,
    reason='nvcc and nvdisasm are not installed',
)


@pytest.fixture(scope='session')
def compiled(tmp_path_factory):
    """Compiles the kernels for an architecture, the first time: what each uses, and the cubin."""

    @functools.cache
    def compiled(arch):
        def make(folder):
            usage = tool.compile_kernels(arch, folder / 'kernels.cubin')
            (folder / 'usage.json').write_text(json.dumps(usage))

        folder = made_once(tmp_path_factory, f'kernels_{arch}', make)
        usage = json.loads((folder / 'usage.json').read_text())
        usage = {name: tool.Usage(*numbers) for name, numbers in usage.items()}
        return usage, folder / 'kernels.cubin'

    return compiled


@pytest.fixture(scope='session')
def counts(compiled):
    return tool.measure(*compiled('90'))


@needs_nvcc
@pytest.mark.parametrize('name', ['sort.cu', 'registration.cpp'])
def test_the_other_cuda_sources_compile_without_warnings(name, tmp_path):
    # Of CUB, only as far as PTX: all that is ours is compiled by then.
    kind = ['-ptx', '-Xcicc=-O0'] if name == 'sort.cu' else ['-Xcompiler=-fPIC', '-c']
    command = [
        tool.toolkit('nvcc'),
        *tool.nvcc_options(),
        '-arch=sm_80',
        *kind,
        ROOT / 'ops' / 'cuda' / name,
        '-o',
        tmp_path / 'compiled',
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = [line for line in done.stderr.splitlines() if 'warning' in line and 'ops/' in line]
    assert not ours, done.stderr


def test_no_kernel_keeps_registers_in_memory():
    record = json.loads(kernel_usage.RECORD.read_text())
    assert [*record['generations']] == kernel_usage.generations()
    for used in record['generations'].values():
        assert used['kernels'] > 50
        assert used['spilling'] == {}
        # What a multiprocessor of any generation gives to a block that asks for nothing special.
        assert used['most_shared_bytes'] <= 48 * 1024


@needs_nvcc
@pytest.mark.slow
def test_the_record_of_the_kernels_is_that_of_the_sources(compiled):
    """One generation is compiled here; five take minutes, and only these sources change them."""
    record = json.loads(kernel_usage.RECORD.read_text())
    command = 'python -m benchmarks.op.kernel_usage'
    assert record['sources'] == kernel_usage.checksum(), f'the CUDA sources changed; run {command}'
    usage, _ = compiled('90')
    found, known = kernel_usage.summary(usage), record['generations']['90']
    assert found['spilling'] == {}
    # Another release of nvcc may count registers otherwise.
    if record['nvcc'] == kernel_usage.nvcc_version():
        assert found == known, f'run {command}'


@needs_disassembler
@pytest.mark.parametrize(
    'direction, operator, most',
    [
        ('forward', 'plain', 280),
        ('forward', 'fused, reference of 2', 280),
        ('forward', 'fused, reference of 4', 320),
        ('backward', 'plain', 520),
        ('backward', 'fused, reference of 2', 520),
        ('backward', 'fused, reference of 4', 540),
    ],
)
def test_instructions_per_query_and_head_stay_few(counts, direction, operator, most):
    """The kernels that most projects copy need 1547 forward and about 4570 backward."""
    rows = [row for row in counts if row['pass'] == direction and row['operator'] == operator]
    assert {row['dtype'] for row in rows} == {'float32', 'float16', 'bfloat16'}
    for row in rows:
        # Fewer than half would mean that the loops were not recognised.
        assert most / 2 < row['per_query_and_head'] <= most, row


@needs_disassembler
def test_gradients_of_value_are_added_four_at_a_time(compiled):
    _, cubin = compiled('90')
    for name, code in tool.disassemble(cubin).items():
        adds = [x.text for x in code if 'RED' in x.text or 'ATOM' in x.text]
        if 'backward_kernelIfLi4E' in name or 'Li8ELi4E' in name and 'backward' in name:
            assert adds and all('F32x4' in text for text in adds), name
        # Loops that compare and swap are what the hardware needs where it has no addition.
        assert not any('CAS' in text for text in adds), name
