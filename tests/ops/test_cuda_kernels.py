"""The CUDA backend's numbers, on an emulated GPU everywhere and on a real one where there is one.

emulated_gpu/ compiles the very sources that nvcc compiles, kernels and launches, with a C++
compiler and executes them on CPU tensors, one thread after another. This finds wrong arithmetic and
indices, lanes that part ways and forgotten synchronisation. It cannot show what nvcc makes of the
sources, how blocks that run at the same time get along, or how fast they are. What only a real GPU
can show besides numbers is in test_cuda.py.
"""

import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from made_once import made_once
from op_cases import SIZES, case, cuda_marks, fused_case, levels_of, needs_native

from ddetr_plugin.ops import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)

ROOT = Path(__file__).resolve().parents[2]
COMPILER = next(
    filter(None, map(shutil.which, filter(None, [os.environ.get('CXX'), 'g++', 'clang++']))), None
)
# Rows of 32 channels have kernels of their own; others of whole 16-byte pieces are read in such
# pieces, the rest number by number, and what a warp cannot hold at once in several passes.
CHANNELS = [1, 5, 8, 24, 32, 64, 71, 264]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# For results of size one: rounding of float32 sums, or of the result to 16 bits.
TOLERANCES = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
# With this many (picture, query, head), the GPU gives each only the lanes that its channels need,
# and takes queries that are the cells of the levels in tiles.
MANY = dict(sizes=((22, 26), (10, 13), (3, 7)), batch=1, heads=23, points=2, queries=723)


class RealGpu:
    """The operators on a GPU with the face of the emulated ones: tensors stay on the CPU."""

    def __init__(self):
        self.levels_on_device = False

    def configure(self, last_thread_first, levels_on_device):
        """Threads of a GPU run as they like; level numbers go where they shall."""
        self.levels_on_device = levels_on_device

    def __getattr__(self, name):
        operator = getattr(torch.ops.ddetr_plugin, name).default

        def on_gpu(x):
            is_level = isinstance(x, torch.Tensor) and not x.is_floating_point()
            if not isinstance(x, torch.Tensor) or (is_level and not self.levels_on_device):
                return x
            # Copies that keep strides, and the distance to an aligned address, as the tests made
            # them.
            storage = torch.empty(0, dtype=x.dtype, device='cuda')
            storage.set_(x.untyped_storage().cuda(), x.storage_offset(), x.shape, x.stride())
            return storage

        def call(*arguments):
            results = operator(*map(on_gpu, arguments))
            if isinstance(results, torch.Tensor):
                return results.cpu()
            return tuple(result.cpu() for result in results)

        return call


@pytest.fixture(scope='module', params=['emulated', pytest.param('real', marks=cuda_marks)])
def gpu(request, tmp_path_factory):
    """The operators on either GPU, level numbers on the host."""
    return RealGpu() if request.param == 'real' else emulated(tmp_path_factory)


def emulated(tmp_path_factory):
    """The operators on the emulated GPU."""
    if COMPILER is None:
        pytest.skip('no C++ compiler was found')
    folder = made_once(tmp_path_factory, 'emulated_gpu', compile_emulated)
    torch.ops.load_library(str(folder / 'emulated_gpu.so'))
    return torch.ops.ddetr_emulated_gpu


def compile_emulated(folder):
    torch_folder = Path(torch.__file__).parent
    done = subprocess.run(
        [
            COMPILER,
            '-O1',
            '-std=c++17',
            '-fPIC',
            '-shared',
            # The kernels read memory in 16-byte pieces, and their products are never fused.
            '-fno-strict-aliasing',
            '-ffp-contract=off',
            '-Wno-unknown-pragmas',
            '-DTORCH_TARGET_VERSION=0x020a000000000000',
            f'-I{ROOT}',
            f'-I{ROOT / "ops" / "cuda"}',
            f'-I{ROOT / "tests" / "ops" / "emulated_gpu"}',
            f'-I{torch_folder / "include"}',
            str(ROOT / 'tests' / 'ops' / 'emulated_gpu' / 'emulated_gpu.cpp'),
            f'-L{torch_folder / "lib"}',
            '-ltorch_cpu',
            '-o',
            str(folder / 'emulated_gpu.so'),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(autouse=True)
def usual_configuration(gpu):
    gpu.configure(False, False)
    yield
    gpu.configure(False, False)


def run(gpu, arguments, grad_output, deterministic=False):
    """Output and gradients of the plain operator: value, locations, weights."""
    output = gpu.ms_deform_attn_forward(*arguments)
    return output, *gpu.ms_deform_attn_backward(grad_output, *arguments, deterministic)


def run_fused(gpu, arguments, grad_output, deterministic=False):
    """Output and gradients of the fused operator: value, references, offsets, logits."""
    output = gpu.ms_deform_attn_fused_forward(*arguments)
    grad_value, grad_offsets, grad_logits, grad_references = gpu.ms_deform_attn_fused_backward(
        grad_output, output, *arguments, True, deterministic
    )
    return output, grad_value, grad_references, grad_offsets, grad_logits


def expected(reference, arguments, grad_output):
    """The same by the definition, in float64 from the same numbers."""
    wide = [x.double().requires_grad_() if x.is_floating_point() else x for x in arguments]
    output = reference(*wide)
    wanted = [x for x in wide if x.requires_grad]
    return output.detach(), *torch.autograd.grad(output, wanted, grad_output.double())


def check(ours, theirs, tolerance):
    for number, (mine, wanted) in enumerate(zip(ours, theirs, strict=True)):
        scale = wanted.abs().max().clamp(min=1)
        error = ((mine.double() - wanted).abs().max() / scale).item()
        assert error < tolerance, f'result {number} differs by {error:.1e}'


def gradient_like(arguments):
    value, points = arguments[0], arguments[-1]
    generator = torch.Generator().manual_seed(1)
    shape = value.shape[0], points.shape[1], value.shape[2] * value.shape[3]
    return torch.randn(shape, generator=generator).to(value.dtype)


def with_value(arguments, dtype):
    value, *rest = arguments
    return value.to(dtype), *rest


def wide_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('channels', CHANNELS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_plain_equals_the_definition(gpu, dtype, channels, deterministic):
    arguments = with_value(case(channels=channels, dtype=wide_dtype(dtype)), dtype)
    grad_output = gradient_like(arguments)
    ours = run(gpu, arguments, grad_output, deterministic)
    check(ours, expected(ms_deform_attn_reference, arguments, grad_output), TOLERANCES[dtype])


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('reference_size', [2, 4])
@pytest.mark.parametrize('channels', CHANNELS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_fused_equals_the_definition(gpu, dtype, channels, reference_size, deterministic):
    arguments = with_value(
        fused_case(
            reference_size,
            shared=channels % 2 == 0,
            channels=channels,
            points=4,
            dtype=wide_dtype(dtype),
        ),
        dtype,
    )
    grad_output = gradient_like(arguments)
    ours = run_fused(gpu, arguments, grad_output, deterministic)
    theirs = expected(ms_deform_attn_fused_reference, arguments, grad_output)
    # Gradients of a box's side are sums over many samples, and softmax takes off the mean gradient
    # of a rounded output.
    check(ours, theirs, 4 * TOLERANCES[dtype])


@pytest.mark.parametrize('levels_on_device', [False, True])
@pytest.mark.parametrize('queries', [MANY['queries'], 720])
@pytest.mark.parametrize(
    'dtype, channels',
    [(torch.float32, 32), (torch.float32, 12), (torch.bfloat16, 32), (torch.bfloat16, 5)],
)
def test_many_queries_in_tiles_and_in_rows(gpu, dtype, channels, queries, levels_on_device):
    """Every query is taken once: queries that are no cells of the levels, and those that are."""
    gpu.configure(False, levels_on_device)
    arguments = with_value(
        fused_case(**{**MANY, 'queries': queries}, channels=channels, dtype=torch.float32), dtype
    )
    grad_output = gradient_like(arguments)
    ours = run_fused(gpu, arguments, grad_output)
    theirs = expected(ms_deform_attn_fused_reference, arguments, grad_output)
    check(ours, theirs, 8 * TOLERANCES[dtype])


@pytest.mark.parametrize('sizes, points', [(((9, 4),), 1), (((3, 4), (5, 2)), 35), (SIZES * 5, 3)])
@pytest.mark.parametrize('channels', [5, 32])
def test_any_number_of_levels_and_points(gpu, channels, sizes, points):
    arguments = case(channels=channels, sizes=sizes, points=points, dtype=torch.float32)
    grad_output = gradient_like(arguments)
    check(
        run(gpu, arguments, grad_output, True),
        expected(ms_deform_attn_reference, arguments, grad_output),
        5e-5,
    )
    arguments = fused_case(channels=channels, sizes=sizes, points=points, dtype=torch.float32)
    check(
        run_fused(gpu, arguments, grad_output, True),
        expected(ms_deform_attn_fused_reference, arguments, grad_output),
        5e-5,
    )


@pytest.mark.parametrize(
    'dtype, channels, many',
    [
        (torch.float32, 32, False),
        (torch.float32, 71, False),
        (torch.float32, 32, True),
        (torch.bfloat16, 32, True),
        (torch.bfloat16, 264, False),
        (torch.float64, 5, False),
    ],
)
def test_the_order_of_threads_changes_no_bit(gpu, channels, dtype, many):
    """Lanes that do not wait for each other would read what is not there yet.

    Also says that the deterministic gradient of `value` is what its name promises.
    """
    sizes = MANY if many else {}
    arguments = with_value(fused_case(**sizes, channels=channels, dtype=wide_dtype(dtype)), dtype)
    grad_output = gradient_like(arguments)
    results = []
    for last_thread_first in (False, True):
        gpu.configure(last_thread_first, False)
        results.append(run_fused(gpu, arguments, grad_output, True))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 1e30, -50.0])
@pytest.mark.parametrize('channels', [5, 32])
def test_a_location_that_reads_nothing_has_no_gradient(gpu, channels, bad, deterministic):
    value, shapes, starts, locations, weights = case(channels=channels, dtype=torch.float32)
    locations[0, 0, 0, 0, 0, 0] = bad
    locations[0, 1, 1, :, :, 1] = bad  # a row that reads nothing at all
    locations[1, 2, :, 2] = bad
    arguments = value, shapes, starts, locations, weights
    grad_output = gradient_like(arguments)
    output, grad_value, grad_locations, grad_weights = run(
        gpu, arguments, grad_output, deterministic
    )
    far = locations.nan_to_num(nan=-9.0, posinf=-9.0, neginf=-9.0).clamp(-9, 9)
    theirs = expected(ms_deform_attn_reference, (value, shapes, starts, far, weights), grad_output)
    check((output, grad_value, grad_locations, grad_weights), theirs, 2e-5)
    nothing = ~locations.isfinite().all(-1) | (locations.abs() > 9).any(-1)
    assert (grad_locations[nothing] == 0).all() and (grad_weights[nothing] == 0).all()
    assert (output[0, 1].view(-1, channels)[1] == 0).all()


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize('reference_size', [2, 4])
def test_an_offset_that_is_no_number_has_no_gradient(gpu, reference_size, bad):
    arguments = fused_case(reference_size, channels=32, dtype=torch.float32)
    offsets = arguments[4]
    offsets[0, 0, 0, 0, 0, 0] = bad
    offsets[1, 2, :, 1, :, 1] = bad
    nothing = ~(offsets.abs() < 1e29).all(-1)
    grad_output = gradient_like(arguments)
    ours = run_fused(gpu, arguments, grad_output, True)
    far = offsets.nan_to_num(nan=1e4, posinf=1e4, neginf=1e4).clamp(-1e4, 1e4)
    theirs = expected(
        ms_deform_attn_fused_reference, (*arguments[:4], far, arguments[5]), grad_output
    )
    check(ours, theirs, 5e-5)
    assert (ours[3][nothing] == 0).all()


@needs_native
@pytest.mark.parametrize('reference_size', [0, 2, 4])
@pytest.mark.parametrize('points', [1, 3, 4])
def test_the_cpu_finds_the_same_pixels_to_the_bit(gpu, points, reference_size):
    """Both backends compile one text for them: ops/sampling.h."""
    height, width = 3, 100
    cells = height * width
    # Each cell has a channel of its own, in which a query finds the weight of that cell.
    sizes = dict(batch=1, queries=500, heads=1, channels=cells, points=points)
    make = fused_case if reference_size else case
    more = dict(reference_size=reference_size) if reference_size else {}
    arguments = make(**more, **sizes, sizes=((height, width),), dtype=torch.float32)
    arguments[0][:] = torch.eye(cells).view(1, cells, 1, cells)
    # All weight is on one point, so that nothing is summed up.
    weights = torch.full_like(arguments[-1], -1e9 if reference_size else 0)
    weights[..., 0] = 0 if reference_size else 1
    arguments = (*arguments[:-1], weights)
    cpu = ms_deform_attn_fused if reference_size else ms_deform_attn
    other = gpu.ms_deform_attn_fused_forward if reference_size else gpu.ms_deform_attn_forward
    ours, theirs = cpu(*arguments)[0], other(*arguments)[0]
    assert ((theirs > 0).sum(-1) == 4).sum() > 100
    # Weights are handed out and summed up in parts, which rounds them; the next pixel would be
    # 8e-6 away.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('many', [False, True])
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('channels', [5, 32])
def test_a_bad_value_goes_where_it_goes_in_grid_sample(gpu, channels, bad, many, deterministic):
    """Infinity stays infinity on the border too, and beside samples that read nothing."""
    sizes = {**MANY, 'queries': 715} if many else {'queries': 40, 'batch': 1}
    value, shapes, starts, locations, weights = case(
        **sizes, channels=channels, dtype=torch.float32
    )
    value[0, 0] = bad  # the corner of the first level
    value[0, (shapes[0].prod() + shapes[1].prod()).item() - 1] = bad  # of the second level
    arguments = value, shapes, starts, locations, weights
    # Of the backward, only the samples' gradients see `value`.
    grad_output = gradient_like(arguments)
    ours = run(gpu, arguments, grad_output, deterministic)
    theirs = expected(ms_deform_attn_reference, arguments, grad_output)
    assert not theirs[0].isfinite().all() and theirs[0].isfinite().any()
    if math.isinf(bad):
        assert theirs[0].isinf().any()
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_level_numbers_that_do_not_fit_read_zero_and_touch_nothing(gpu):
    """Where they lie in the memory of a GPU, nobody has checked them."""
    gpu.configure(False, True)
    value, shapes, starts, locations, weights = case(channels=32, dtype=torch.float32)
    right = run(gpu, (value, shapes, starts, locations, weights), torch.ones(2, 6, 96))
    wrong_sizes, wrong_starts = shapes.clone(), starts.clone()
    wrong_sizes[0, 0] = 1 << 40
    wrong_sizes[2, 1] = -1
    wrong_starts[1] = value.shape[1] - 3
    results = run(
        gpu, (value, wrong_sizes, wrong_starts, locations, weights), torch.ones(2, 6, 96), True
    )
    for tensor in results:
        assert (tensor == 0).all()
    assert not (right[0] == 0).all()


@pytest.mark.parametrize('batch, queries', [(0, 4), (2, 0)])
def test_nothing_to_do(gpu, batch, queries):
    arguments = case(channels=32, dtype=torch.float32)
    value, shapes, starts, locations, weights = arguments
    arguments = (
        value[:batch],
        shapes,
        starts,
        locations[:batch, :queries],
        weights[:batch, :queries],
    )
    grad_output = torch.zeros(batch, queries, 96)
    for deterministic in (False, True):
        output, *grads = run(gpu, arguments, grad_output, deterministic)
        assert output.shape == (batch, queries, 96)
        for grad, of in zip(grads, (arguments[0], *arguments[3:]), strict=True):
            assert grad.shape == of.shape and (grad == 0).all()


def test_memory_that_is_not_aligned_or_not_contiguous(gpu):
    value, shapes, starts, locations, weights = case(channels=32, dtype=torch.float32)
    grad_output = gradient_like((value, weights))
    right = run(gpu, (value, shapes, starts, locations, weights), grad_output)

    def shifted(tensor):
        storage = tensor.new_empty(tensor.numel() + 1)
        return storage[1:].view(tensor.shape).copy_(tensor)

    def strided(tensor):
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)

    for change in (shifted, strided):
        moved = change(value), shapes, starts, change(locations), change(weights)
        for mine, wanted in zip(run(gpu, moved, change(grad_output)), right, strict=True):
            assert torch.equal(mine, wanted)


def test_16_bit_gradients_of_a_cell_that_all_samples_share_are_summed_in_float32(gpu):
    """In 16 bits, 4096 additions of one would stop at 256 (bfloat16) or at 2048 (float16)."""
    value = torch.zeros(1, 1, 1, 32)
    locations = torch.full((1, 4096, 1, 1, 1, 2), 0.5)
    weights = torch.ones(1, 4096, 1, 1, 1)
    for dtype in (torch.bfloat16, torch.float16):
        for deterministic in (False, True):
            _, grad_value, *_ = run(
                gpu,
                (value.to(dtype), *levels_of(((1, 1),)), locations, weights),
                torch.ones(1, 4096, 32, dtype=dtype),
                deterministic,
            )
            assert (grad_value == 4096).all()
