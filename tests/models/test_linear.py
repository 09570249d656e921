"""The linear layer of many tokens against torch's own in float64."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from ddetr_plugin.models.layers.token_linear import MIN_ROWS, TokenLinear


def make(in_features=24, out_features=40, bias=True):
    torch.manual_seed(0)
    return TokenLinear(in_features, out_features, bias=bias)


def run(layer, x):
    x = x.detach().requires_grad_()
    output = layer(x)
    generator = torch.Generator().manual_seed(1)
    grad_output = torch.randn(output.shape, generator=generator).to(output)
    grads = torch.autograd.grad(output, [x, *layer.parameters()], grad_output)
    return output.detach(), *grads


def check(layer, x):
    wide = torch.nn.Linear(
        layer.in_features, layer.out_features, layer.bias is not None, dtype=torch.float64
    )
    wide.load_state_dict(layer.state_dict())
    for ours, expected in zip(run(layer, x), run(wide, x.double()), strict=True):
        assert ours.shape == expected.shape and ours.is_contiguous()
        scale = expected.abs().max()  # float32 sums of up to thousands of rows
        torch.testing.assert_close(ours.double() / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', [(2, MIN_ROWS, 24), (MIN_ROWS + 3, 24), (3, 5, 7, 31, 24)])
def test_many_rows_equal_a_linear_layer_with_its_gradients(shape, bias):
    check(make(bias=bias), torch.randn(shape))


@pytest.mark.parametrize('shape', [(2, 3, 24), (24,), (0, 24), (2, 0, 24)])
def test_few_or_no_rows_equal_a_linear_layer(shape):
    layer = make()
    x = torch.randn(shape)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def test_rows_that_are_not_contiguous():
    maps = torch.randn(2, 24, 40, 60)
    tokens = maps.flatten(2).transpose(1, 2)
    assert not tokens.is_contiguous()
    check(make(), tokens)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_dtypes_are_kept(dtype):
    layer = make().to(dtype)
    assert layer(torch.randn(MIN_ROWS, 24, dtype=dtype)).dtype == dtype


def test_autocast_computes_in_16_bits_as_for_any_linear_layer():
    layer, x = make(), torch.randn(MIN_ROWS, 24)
    plain = torch.nn.Linear(24, 40)
    plain.load_state_dict(layer.state_dict())
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=0)


def test_a_compiled_layer_takes_any_number_of_rows_without_compiling_again():
    counter = CompileCounter()
    layer = torch.compile(copy.deepcopy(make()), backend=counter, dynamic=True, fullgraph=True)
    for rows in (100, MIN_ROWS, 3 * MIN_ROWS):
        layer(torch.randn(rows, 24))
    assert counter.frame_count == 1


def test_a_width_that_does_not_fit_is_refused():
    with pytest.raises(RuntimeError):
        make()(torch.randn(2, MIN_ROWS, 25))
    with pytest.raises(RuntimeError):
        make()(torch.randn(2 * MIN_ROWS, 12))  # as many numbers as MIN_ROWS rows have
