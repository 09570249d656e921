"""What is dynamic or run under a mode."""

import pytest
import torch
from op_cases import case, fused_case, needs_native, with_grad
from torch._subclasses.fake_tensor import FakeTensorMode

from ddetr_plugin.ops import (
    dropout,
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_reference,
)

pytestmark = needs_native


@pytest.mark.parametrize('dynamic', [True, False])
@pytest.mark.parametrize('fused', [False, True])
def test_compiles_with_batch_queries_and_sizes_that_change(fused, dynamic):
    function, make = (ms_deform_attn_fused, fused_case) if fused else (ms_deform_attn, case)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend='aot_eager', dynamic=dynamic)
    for batch, queries, sizes in ((2, 6, [(7, 5), (3, 4)]), (3, 9, [(8, 6), (4, 3)])):
        arguments = make(batch=batch, queries=queries, sizes=sizes)
        torch.testing.assert_close(compiled(*arguments), function(*arguments))


@pytest.mark.parametrize('fused', [False, True])
def test_exports_with_a_dynamic_batch(fused):
    function, make = (ms_deform_attn_fused, fused_case) if fused else (ms_deform_attn, case)

    class Module(torch.nn.Module):
        def forward(self, value, shapes, starts, *rest):
            return function(value, shapes, starts, *rest)

    arguments = make(batch=2)
    batch = torch.export.Dim('batch', min=2, max=8)
    shapes = tuple({0: batch} if tensor.is_floating_point() else None for tensor in arguments)
    program = torch.export.export(
        Module(), arguments, dynamic_shapes=(*shapes[:3], tuple(shapes[3:]))
    )
    larger = make(batch=5)
    torch.testing.assert_close(program.module()(*larger), function(*larger))


@pytest.mark.parametrize('fused', [False, True])
def test_autocast_leaves_value_and_coordinates_alone(fused):
    function, make = (ms_deform_attn_fused, fused_case) if fused else (ms_deform_attn, case)
    arguments = make(dtype=torch.float32, channels=32)
    expected = function(*arguments)
    with torch.autocast('cpu', torch.bfloat16):
        output = function(*arguments)
    assert output.dtype == torch.float32
    assert torch.equal(output, expected)


def test_deterministic_mode_is_what_the_cpu_does_anyway():
    value, *rest = with_grad(case(queries=200, channels=32))
    torch.use_deterministic_algorithms(True)
    try:
        grads = [
            torch.autograd.grad(ms_deform_attn(value, *rest).square().sum(), value)[0]
            for _ in range(2)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*grads)


def test_a_model_of_another_dtype_moves_with_one_call():
    value, shapes, starts, locations, weights = case(channels=16)
    for dtype in (torch.float16, torch.bfloat16):
        # Everything in 16 bits, as `model.half()` has it.
        low = [x.to(dtype) for x in (value, locations, weights)]
        output = ms_deform_attn(low[0], shapes, starts, *low[1:])
        exact = ms_deform_attn_reference(
            low[0].double(), shapes, starts, *(x.double() for x in low[1:])
        )
        assert (output - exact).norm() < 4e-3 * exact.norm()


@needs_native
def test_a_default_device_of_the_caller_does_not_reach_the_tables_of_levels():
    sizes = [(4, 7), (2, 3)]  # of no other test: tables are kept
    value, locations = torch.randn(1, 34, 2, 4), torch.rand(1, 5, 2, 2, 3, 2)
    weights = torch.rand(1, 5, 2, 2, 3)
    with torch.device('meta'):
        inside = ms_deform_attn(value, sizes, None, locations, weights)
        dropped = dropout(torch.ones(100, device='cpu'), 0.5)
    expected = ms_deform_attn_reference(value, sizes, None, locations, weights)
    torch.testing.assert_close(inside, expected)
    torch.testing.assert_close(ms_deform_attn(value, sizes, None, locations, weights), expected)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


@needs_native
def test_tracing_with_fake_tensors_works_after_an_eager_call():
    sizes = [(3, 8), (2, 5)]
    value, locations = torch.randn(1, 34, 2, 4), torch.rand(1, 5, 2, 2, 3, 2)
    weights = torch.rand(1, 5, 2, 2, 3)
    ms_deform_attn(value, sizes, None, locations, weights)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (value, locations, weights)]
        assert ms_deform_attn(fakes[0], sizes, None, *fakes[1:]).shape == (1, 5, 8)
    ms_deform_attn(value, sizes, None, locations, weights)
