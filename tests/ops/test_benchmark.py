"""The GPU benchmark, tried on the CPU."""

import benchmark_op_cuda
import pytest
import torch
from op_cases import needs_native

TINY = (1, ((6, 5), (3, 2)), None, (2, 8, 2))


@needs_native
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_every_implementation_is_timed_and_compared(dtype, fused):
    rows = benchmark_op_cuda.measure_case(TINY, dtype, 'cpu', rounds=2, copies=2, fused=fused)
    assert not [row for row in rows if 'failed' in row]
    ours = [row for row in rows if row['implementation'] == 'ours']
    assert [row['pass'] for row in ours] == ['forward', 'backward']
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    assert all(row['error'] < limit and row['times_ours'] == 1 for row in ours)
    assert {row['implementation'] for row in rows} >= {
        'ours',
        'PyTorch + grid_sample' if fused else 'grid_sample',
    }


def test_compulsory_bytes_of_an_encoder_are_those_worked_out_by_hand():
    """800 x 1333: the forward moves 79.6 MB in float32 and gathers 1456 MB."""
    levels = ((100, 167), (50, 84), (25, 42), (13, 21))
    plain, _ = benchmark_op_cuda.make_inputs(1, levels, None, 'cpu')
    least, gathered = benchmark_op_cuda.compulsory_bytes(plain, 'forward')
    assert least == pytest.approx(79.6e6, rel=0.01)
    assert gathered == pytest.approx(1456e6, rel=0.01)
