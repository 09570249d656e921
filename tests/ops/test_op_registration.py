"""What torch needs to trace the operator: schema, fake kernels, gradients, compilation."""

import pytest
import torch
from op_cases import case, devices, needs_native, outputs_and_gradients, with_grad
from torch._subclasses.fake_tensor import FakeTensorMode

from ddetr_plugin.ops import ms_deform_attn

pytestmark = needs_native


def raw():
    return torch.ops.ddetr_plugin


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_forward_passes_opcheck(dtype, device):
    torch.library.opcheck(raw().ms_deform_attn_forward, with_grad(case(dtype=dtype, device=device)))


@pytest.mark.parametrize('device', devices())
def test_backward_passes_opcheck(device):
    arguments = case(device=device)
    grad_output = torch.randn(2, 6, 15, dtype=torch.float64, device=device)
    torch.library.opcheck(raw().ms_deform_attn_backward, (grad_output, *arguments, False))


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_fake_kernels_give_shape_dtype_and_device(dtype, device):
    with FakeTensorMode():
        value = torch.empty(2, 48, 3, 5, dtype=dtype, device=device)
        shapes = torch.empty(3, 2, dtype=torch.int64, device=device)
        starts = torch.empty(3, dtype=torch.int64, device=device)
        locations = torch.empty(2, 6, 3, 3, 4, 2, device=device)
        weights = torch.empty(2, 6, 3, 3, 4, device=device)
        arguments = (value, shapes, starts, locations, weights)
        output = raw().ms_deform_attn_forward(*arguments)
        grads = raw().ms_deform_attn_backward(output, *arguments, False)
    assert (output.shape, output.dtype, output.device.type) == ((2, 6, 15), dtype, device)
    for grad, argument in zip(grads, (value, locations, weights)):
        assert (grad.shape, grad.dtype, grad.device) == (
            argument.shape,
            argument.dtype,
            argument.device,
        )


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('integers', [False, True])
def test_compiles_as_one_graph_with_gradients(integers, device):
    def double(value, shapes, starts, locations, weights):
        if integers:
            shapes, starts = ((7, 5), (3, 4), (1, 1)), None
        return 2 * ms_deform_attn(value * 1, shapes, starts, locations, weights)

    torch.compiler.reset()
    compiled = torch.compile(double, fullgraph=True, backend='aot_eager')
    for queries in (6, 9, 11):  # the second shape makes the queries a symbol
        arguments = case(queries=queries, device=device)
        for ours, theirs in zip(
            outputs_and_gradients(compiled, arguments), outputs_and_gradients(double, arguments)
        ):
            torch.testing.assert_close(ours, theirs)


def test_export_keeps_the_operator_as_one_node():
    class Module(torch.nn.Module):
        def forward(self, value, shapes, starts, locations, weights):
            return ms_deform_attn(value, shapes, starts, locations, weights)

    arguments = case()
    program = torch.export.export(Module(), arguments)
    calls = [node.target for node in program.graph.nodes if node.op == 'call_function']
    assert calls.count(raw().ms_deform_attn_forward.default) == 1
    torch.testing.assert_close(program.module()(*arguments), Module()(*arguments))
