"""What only a real GPU can show: streams, graphs, waiting, memory, more than 2^31 elements.

Run with `make test-cuda`; each test says in its name what it wants. Numbers are compared with the
definition in test_cuda_kernels.py, and in every test of this folder that takes a device.
"""

import importlib.util

import pytest
import torch
from op_cases import case, cuda_marks, fused_case, outputs_and_gradients, with_grad

from ddetr_plugin.ops import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)

pytestmark = cuda_marks

OPERATORS = pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
# An encoder: more rows than fill the GPU, queries that are the cells.
ENCODER = dict(batch=2, heads=8, channels=32, points=4, sizes=((40, 50), (20, 25), (10, 13)))
ENCODER['queries'] = 40 * 50 + 20 * 25 + 10 * 13
DECODER = {**ENCODER, 'queries': 30}


def operator(fused):
    return ms_deform_attn_fused if fused else ms_deform_attn


def inputs(fused, dtype=torch.float32, device='cuda', **sizes):
    """Arguments of the operator, the level numbers on the CPU."""
    make = fused_case if fused else case
    value, shapes, starts, *rest = make(**(sizes or ENCODER), dtype=torch.float32)
    return value.to(device, dtype), shapes, starts, *(x.to(device) for x in rest)


def step(fused, arguments, grad_output):
    """Output and gradients."""
    leaves = with_grad(arguments)
    output = operator(fused)(*leaves)
    wanted = [x for x in leaves if x.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, grad_output)]


def gradient_like(fused, arguments):
    value, queries = arguments[0], arguments[-1].shape[1]
    return torch.randn(value.shape[0], queries, value.shape[2] * value.shape[3]).to(value)


@pytest.fixture
def deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_all_close(ours, theirs, tolerance=1e-5):
    """Relative to the largest number of each; atomics add in another order every time."""
    for number, (mine, wanted) in enumerate(zip(ours, theirs, strict=True)):
        scale = wanted.abs().max().clamp(min=1e-30)
        error = ((mine.double() - wanted.double()).abs().max() / scale).item()
        assert error < tolerance, f'result {number} differs by {error:.1e}'


@OPERATORS
@pytest.mark.parametrize('sizes', [ENCODER, DECODER], ids=['encoder', 'decoder'])
@pytest.mark.parametrize(
    'dtype, tolerance',
    # Of float32 sums; of the output's rounding, whose product with its gradient softmax takes off.
    [(torch.float32, 2e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)],
)
def test_a_layer_of_usual_size_equals_the_definition_in_float64(fused, sizes, dtype, tolerance):
    arguments = inputs(fused, dtype, **sizes)
    reference = ms_deform_attn_fused_reference if fused else ms_deform_attn_reference
    wide = tuple(x.double() if x.is_floating_point() else x for x in arguments)
    assert_all_close(
        outputs_and_gradients(operator(fused), arguments),
        outputs_and_gradients(reference, wide),
        tolerance,
    )


@OPERATORS
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_the_deterministic_backward_gives_the_same_bits_every_time(
    fused, dtype, deterministic_algorithms
):
    if dtype == torch.float64:
        make = fused_case if fused else case
        arguments = tuple(x.cuda() if x.is_floating_point() else x for x in make(**DECODER))
    else:
        arguments = inputs(fused, dtype)
    grad_output = gradient_like(fused, arguments)
    first = step(fused, arguments, grad_output)
    noise = torch.randn(512, 512, device='cuda')
    for _ in range(10):
        noise = noise @ noise  # other work on the GPU moves the blocks about
        for again, before in zip(step(fused, arguments, grad_output), first, strict=True):
            assert torch.equal(again, before)


@OPERATORS
def test_the_deterministic_backward_equals_the_other_one(fused):
    arguments = inputs(fused)
    grad_output = gradient_like(fused, arguments)
    other = step(fused, arguments, grad_output)
    torch.use_deterministic_algorithms(True)
    try:
        ours = step(fused, arguments, grad_output)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_all_close(ours, other)


@OPERATORS
def test_level_numbers_may_lie_anywhere(fused):
    arguments = inputs(fused)
    value, shapes, starts, *rest = arguments
    expected = operator(fused)(*arguments)
    on_device = operator(fused)(value, shapes.cuda(), starts.cuda(), *rest)
    integers = operator(fused)(value, shapes.tolist(), None, *rest)
    # Queries are taken in another order, but each is summed in the same one.
    assert torch.equal(on_device, expected)
    assert torch.equal(integers, expected)


@OPERATORS
@pytest.mark.parametrize('levels', ['host', 'device'])
@pytest.mark.parametrize('deterministic', [False, True])
def test_the_host_never_waits_for_the_gpu(fused, levels, deterministic):
    """Calls return while the GPU is still busy with what came before them."""
    value, shapes, starts, *rest = inputs(fused)
    if levels == 'device':
        shapes, starts = shapes.cuda(), starts.cuda()
    arguments = value, shapes, starts, *rest
    grad_output = gradient_like(fused, arguments)
    torch.use_deterministic_algorithms(deterministic)
    try:
        for _ in range(2):  # loads kernels and fills the allocator, which may wait
            step(fused, arguments, grad_output)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode('error')
        busy = torch.cuda.Event()
        torch.cuda._sleep(2_000_000_000)  # cycles: about a second
        busy.record()
        step(fused, arguments, grad_output)
        assert not busy.query()
    finally:
        torch.cuda.set_sync_debug_mode('default')
        torch.use_deterministic_algorithms(False)
        torch.cuda.synchronize()


@OPERATORS
@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('sizes', [ENCODER, DECODER], ids=['encoder', 'decoder'])
def test_a_cuda_graph_of_forward_and_backward_follows_its_inputs(fused, deterministic, sizes):
    value, shapes, starts, *rest = inputs(fused, **sizes)
    static = [value, *rest]
    grad_output = gradient_like(fused, (value, *rest))

    def run():
        return step(fused, (static[0], shapes, starts, *static[1:]), grad_output)

    torch.use_deterministic_algorithms(deterministic)
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()
        for shift in (0.0, 0.25):
            for tensor in static:
                tensor.add_(shift)
            graph.replay()
            from_graph = [x.clone() for x in results]
            assert_all_close(from_graph, run())
    finally:
        torch.use_deterministic_algorithms(False)


@OPERATORS
@pytest.mark.parametrize('mode', ['default', 'reduce-overhead'])
@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='triton is not installed')
def test_torch_compile_with_inductor_and_cuda_graphs(fused, mode):
    arguments = with_grad(inputs(fused))
    value, shapes, starts, *rest = arguments
    sizes = [tuple(size) for size in shapes.tolist()]

    def layer(value, *rest):
        return operator(fused)(value * 2, sizes, None, *rest).relu()

    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    wanted = [value, *rest]
    for _ in range(4):  # recording a graph takes some calls
        torch.compiler.cudagraph_mark_step_begin()
        output = compiled(value, *rest)
        ours = [x.clone() for x in (output, *torch.autograd.grad(output.square().sum(), wanted))]
    output = layer(value, *rest)
    theirs = [output, *torch.autograd.grad(output.square().sum(), wanted)]
    assert_all_close([x.detach() for x in ours], [x.detach() for x in theirs], 1e-4)


@OPERATORS
def test_kernels_run_on_the_current_stream(fused):
    """On another stream, they would read `value` before the sleeping stream has filled it."""
    arguments = inputs(fused)
    grad_output = gradient_like(fused, arguments)
    expected = step(fused, arguments, grad_output)
    late = torch.zeros_like(arguments[0])
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(arguments[0])
        ours = step(fused, (late, *arguments[1:]), grad_output)
    torch.cuda.synchronize()
    assert_all_close(ours, expected)


@OPERATORS
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='a second GPU is needed')
def test_a_device_that_is_not_the_current_one(fused):
    expected = inputs(fused)
    grad_output = gradient_like(fused, expected)
    there = tuple(x.to('cuda:1') if x.is_floating_point() else x for x in expected)
    torch.cuda.set_device(0)
    ours = step(fused, there, grad_output.to('cuda:1'))
    assert torch.cuda.current_device() == 0
    assert all(x.device == torch.device('cuda:1') for x in ours)
    assert_all_close([x.to('cuda:0') for x in ours], step(fused, expected, grad_output))


@OPERATORS
def test_a_forward_takes_no_memory_but_its_output(fused):
    arguments = inputs(fused)
    with torch.no_grad():
        operator(fused)(*arguments)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        output = operator(fused)(*arguments)
        taken = torch.cuda.max_memory_allocated() - before
    # The allocator rounds up to 512 bytes.
    assert taken <= output.numel() * output.element_size() + 512


@OPERATORS
def test_autocast_touches_no_coordinate(fused):
    arguments = inputs(fused, torch.bfloat16)
    expected = operator(fused)(*arguments)
    with torch.autocast('cuda', torch.float16):
        output = operator(fused)(*arguments)
    assert output.dtype == torch.bfloat16 and torch.equal(output, expected)


def any_is_set(tensor):
    """Whether any element differs from zero; piece by piece, for the memory's sake."""
    return any(bool(piece.any()) for piece in tensor.split(1 << 20))


def free_bytes():
    """What the GPU has left; 0 without one."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


@pytest.mark.skipif(free_bytes() < 32 << 30, reason='32 GiB of free GPU memory are needed')
@pytest.mark.parametrize('deterministic', [False, True])
def test_more_than_2_to_the_31_elements_of_value(deterministic):
    """Only the last cell is not zero, and only it gets a gradient: 32-bit indices would miss it."""
    height, width, heads, channels = 4100, 4096, 2, 64
    value = torch.zeros(1, height * width, heads, channels, dtype=torch.bfloat16, device='cuda')
    assert value.numel() > 2**31
    last = torch.arange(heads * channels, device='cuda').view(heads, channels).bfloat16()
    value[0, -1] = last
    centre = torch.tensor([(width - 0.5) / width, (height - 0.5) / height], device='cuda')
    locations = centre.expand(1, 1, heads, 1, 1, 2)
    weights = torch.ones(1, 1, heads, 1, 1, device='cuda')
    shapes, starts = torch.tensor([(height, width)]), torch.tensor([0])
    output = ms_deform_attn(value, shapes, starts, locations, weights)
    # float32 puts the centre of so far a cell within a thousandth of it.
    torch.testing.assert_close(output.view(heads, channels), last, rtol=0.02, atol=0)
    grad_value, *_ = torch.ops.ddetr_plugin.ms_deform_attn_backward.default(
        torch.ones_like(output), value, shapes, starts, locations, weights, deterministic
    )
    torch.testing.assert_close(
        grad_value[0, -1].float(), torch.ones(heads, channels, device='cuda'), rtol=0.02, atol=0
    )
    # What is missing there went to its neighbours, and nothing went anywhere else.
    assert not any_is_set(grad_value[0, : -width - 2])


@pytest.mark.skipif(free_bytes() < 48 << 30, reason='48 GiB of free GPU memory are needed')
def test_more_than_2_to_the_31_locations():
    queries = 2**22 + 8
    locations = torch.full((1, queries, 8, 4, 8, 2), -5.0, device='cuda')
    assert locations.numel() > 2**31
    locations[0, -1] = 0.5
    weights = torch.ones(1, queries, 8, 4, 8, device='cuda')
    value = torch.ones(1, 4, 8, 8, device='cuda')
    output = ms_deform_attn(value, [(1, 1)] * 4, None, locations, weights)
    assert (output[0, -1] == 32).all()
    assert not any_is_set(output[0, :-1])
    _, grad_locations, grad_weights = torch.ops.ddetr_plugin.ms_deform_attn_backward.default(
        torch.ones_like(output),
        value,
        torch.tensor([(1, 1)] * 4),
        torch.arange(4),
        locations,
        weights,
        False,
    )
    assert (grad_weights[0, -1] == 8).all()
    assert not any_is_set(grad_weights[0, :-1]) and not any_is_set(grad_locations[0, :-1])


def test_wrong_level_numbers_in_gpu_memory_read_zero():
    """They are never read back, so they cannot be refused; nor can they reach other memory."""
    value, shapes, starts, *rest = inputs(False)
    wrong = shapes.clone()
    wrong[:, 0] = 1 << 40
    output = ms_deform_attn(value, wrong.cuda(), starts.cuda(), *rest)
    assert (output == 0).all()
    torch.cuda.synchronize()


def test_wrong_level_numbers_on_the_host_are_refused():
    value, shapes, starts, *rest = inputs(False)
    shapes[0, 0] += 1
    with pytest.raises((RuntimeError, ValueError), match='spatial_shapes'):
        ms_deform_attn(value, shapes, starts, *rest)
