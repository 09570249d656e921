"""The GPU benchmark, tried on the CPU; peers that are not installed are played by stubs."""

import enum
import math
import sys
import types

import pytest
import torch

from benchmarks.op import cases, cuda, peers
from benchmarks.op.peers import find_peers
from ddetr_plugin.ops import ms_deform_attn_reference, native_load_error

needs_native = pytest.mark.skipif(native_load_error() is not None, reason='native op not built')
TINY = (1, ((6, 5), (3, 2)), None, (2, 8, 2))
DTYPES = pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)


def measure(dtype, fused=False, shape=TINY, only=None):
    """Rows of a tiny case, of all peers or of ours and one other."""
    found = find_peers()[fused]
    if only is not None:
        found = {name: found[name] for name in ('ours', only)}
    return cuda.measure_case(shape, dtype, 'cpu', 2, 2, fused, found)


@needs_native
@DTYPES
@pytest.mark.parametrize('fused', [False, True])
def test_every_implementation_is_timed_and_compared(dtype, fused):
    rows = measure(dtype, fused)
    ours = [row for row in rows if row['implementation'] == 'ours']
    assert [row['pass'] for row in ours] == ['forward', 'backward']
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    assert all(row['error'] < limit and row['times_ours'] == 1 for row in ours)
    assert {row['implementation'] for row in rows if 'failed' not in row} >= {
        'ours',
        'PyTorch + grid_sample' if fused else 'grid_sample',
    }


def test_compulsory_bytes_of_an_encoder_are_those_worked_out_by_hand():
    """800 x 1333: the forward moves 79.6 MB in float32 and gathers 1456 MB."""
    levels = ((100, 167), (50, 84), (25, 42), (13, 21))
    plain, _ = cases.make_inputs(1, levels, None, 'cpu')
    least, gathered = cuda.compulsory_bytes(plain, 'forward')
    assert least == pytest.approx(79.6e6, rel=0.01)
    assert gathered == pytest.approx(1456e6, rel=0.01)


@pytest.mark.parametrize('position', [0, 1])
def test_nan_in_any_result_makes_the_error_nan(position):
    exact = [torch.ones(3).double(), torch.ones(2).double()]
    results = [torch.ones(3), torch.ones(2)]
    assert cuda.errors(results, exact) == 0
    results[position][0] = math.nan
    assert math.isnan(cuda.errors(results, exact))


def row_of(implementation, error):
    return {'implementation': implementation, 'pass': 'forward', 'error': error, 'median_us': 1.0}


@pytest.mark.parametrize('error', [math.nan, math.inf, 0.5])
@pytest.mark.parametrize(
    'implementation, dtype',
    [('ours', torch.float32), ('ours', torch.bfloat16), ('mmcv', torch.float32)],
)
def test_a_wrong_result_stops_the_benchmark(implementation, dtype, error):
    with pytest.raises(SystemExit, match=f'{implementation} is wrong'):
        cuda.judged(row_of(implementation, error), dtype)


def test_a_16_bit_peer_without_a_number_has_failed_and_an_inexact_one_is_listed():
    failed = cuda.judged(row_of('mmcv', math.nan), torch.float16)
    assert failed == {'implementation': 'mmcv', 'pass': 'forward', 'failed': 'its error is nan'}
    inexact = row_of('mmcv', 0.09)
    assert cuda.judged(inexact, torch.bfloat16) == inexact


def test_ours_that_does_not_run_stops_the_benchmark():
    def broken(*inputs):
        raise RuntimeError('no kernel image is available')

    ours = {'ours': peers.Peer(broken)}
    (row,) = cuda.measure_case(TINY, torch.float32, 'cpu', 2, 2, False, ours)
    with pytest.raises(SystemExit, match='ours is wrong.*does not run: no kernel image'):
        cuda.judged(row, torch.float32)


def test_missing_peers_are_named_with_the_way_to_install_them(monkeypatch):
    for name in ('deformops', 'DCNv4', 'torch_ms_deform_attn', 'MultiScaleDeformableAttention'):
        monkeypatch.setitem(sys.modules, name, None)
    plain, fused, missing = find_peers()
    assert not {'deformops', 'FlashDeformAttn', 'torch-ms-deform-attn'} & (set(plain) | set(fused))
    assert 'pip install deformops==3.0.1' in missing['deformops']
    assert 'https://github.com/OpenGVLab/DCNv4' in missing['FlashDeformAttn']
    assert 'torch-ms-deform-attn==0.1.1' in missing['torch-ms-deform-attn']


def test_a_peer_that_cannot_be_imported_without_a_gpu_is_missing_too(monkeypatch):
    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise AssertionError('Torch not compiled with CUDA enabled')

    monkeypatch.setitem(sys.modules, 'DCNv4', types.ModuleType('DCNv4'))
    monkeypatch.setitem(sys.modules, 'DCNv4.functions', Broken('DCNv4.functions'))
    assert 'AssertionError: Torch not compiled' in find_peers()[2]['FlashDeformAttn']


@pytest.fixture
def deformops(monkeypatch):
    """deformops.registry as its 3.0.1 documents it, by the definition; the calls it got."""
    calls = []

    class Backend(enum.Enum):
        CUDA, TRITON, EAGER = 'cuda', 'triton', 'eager'

    def msda(value, shapes, starts, locations, weights, /, *, method='linear', backend=None):
        assert weights.dtype == value.dtype and locations.is_floating_point()
        assert shapes.dtype == starts.dtype == torch.int64
        assert locations.shape == (*weights.shape, 2)
        calls.append((method, backend, value.dtype, locations.dtype))
        weights = weights.float()
        if method == 'softmax':
            weights = weights.flatten(-2).softmax(-1).view(weights.shape)
        else:
            assert method == 'linear'
        return ms_deform_attn_reference(value, shapes, starts, locations, weights)

    registry = types.ModuleType('deformops.registry')
    registry.Backend, registry.msda = Backend, msda
    monkeypatch.setitem(sys.modules, 'deformops', types.ModuleType('deformops'))
    monkeypatch.setitem(sys.modules, 'deformops.registry', registry)
    return calls, Backend


@needs_native
@DTYPES
@pytest.mark.parametrize(
    'name, backend, method',
    [
        ('deformops', None, 'linear'),
        ('deformops Triton fp32', 'TRITON', 'linear'),
        ('deformops CUDA', 'CUDA', 'linear'),
        ('PyTorch + deformops', None, 'softmax'),
    ],
)
def test_deformops_gets_what_it_takes(name, backend, method, dtype, deformops):
    calls, members = deformops
    rows = [
        row
        for row in measure(dtype, fused=method == 'softmax', only=name)
        if row['implementation'] == name
    ]
    assert [row['pass'] for row in rows] == ['forward', 'backward']
    # Weights of 16 bits are its own choice.
    assert all(row['error'] < (1e-5 if dtype == torch.float32 else 2e-2) for row in rows)
    wanted = (method, backend and members[backend], dtype, torch.float32)
    assert set(calls) == {wanted}


class FlashDeformAttnFunction:
    """What the sources of DCNv4's kernel read: where, in which order, and its own softmax."""

    calls = []

    @classmethod
    def apply(cls, value, shapes, starts, points, im2col_step, number):
        batch, queries, heads, length = points.shape
        levels = len(shapes)
        assert value.is_contiguous() and points.is_contiguous()
        assert points.dtype == value.dtype
        assert length == 3 * levels * number and batch % min(batch, im2col_step) == 0
        cls.calls.append(points.dtype)
        # Of a query and head: x and y of each point, level by level; then each point's logit.
        samples = range(levels * number)
        x = torch.stack([points[..., 2 * i] for i in samples], -1)
        y = torch.stack([points[..., 2 * i + 1] for i in samples], -1)
        logits = torch.stack([points[..., 2 * levels * number + i] for i in samples], -1).float()
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        shape = (batch, queries, heads, levels, number)
        return ms_deform_attn_reference(
            value,
            shapes,
            starts,
            torch.stack([x, y], -1).view(*shape, 2),
            weights.view(shape),
        )


@needs_native
@DTYPES
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize(
    'shape', [TINY, (2, ((4, 3), (3, 2), (1, 2)), 7, (3, 8, 4))], ids=['encoder', 'decoder']
)
def test_flash_deform_attn_gets_its_own_layout(shape, fused, dtype, monkeypatch):
    functions = types.ModuleType('DCNv4.functions')
    functions.FlashDeformAttnFunction = FlashDeformAttnFunction
    monkeypatch.setitem(sys.modules, 'DCNv4', types.ModuleType('DCNv4'))
    monkeypatch.setitem(sys.modules, 'DCNv4.functions', functions)
    monkeypatch.setattr(FlashDeformAttnFunction, 'calls', [])
    name = 'PyTorch + FlashDeformAttn' if fused else 'FlashDeformAttn'
    rows = measure(dtype, fused, shape, only=name)
    rows = [row for row in rows if row['implementation'] == name]
    assert [row['pass'] for row in rows] == ['forward', 'backward']
    # In 16 bits, coordinates have 16 bits as well.
    assert all(row['error'] < (1e-5 if dtype == torch.float32 else 0.1) for row in rows)
    assert set(FlashDeformAttnFunction.calls) == {dtype}
