"""More than 2^31 elements: an index of 32 bits would miss the last one, the only one that counts.

Large inputs are zeros in memory that nothing has written to, which takes no room; what a test
writes does.
"""

import math
import os

import numpy as np
import pytest
import torch
from op_cases import needs_native

from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_fused

pytestmark = needs_native
OPERATORS = pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
# Four cells in a square; the samples of zeros lie at its corner and read a quarter of the first.
SQUARE = [(2, 2)]
LAST_OF_SQUARE = 0.75


def zeros(*shape, dtype=torch.float32):
    """Zeros that take memory only where they are written to."""
    size = torch.empty(0, dtype=dtype).element_size()
    try:
        memory = np.zeros(math.prod(shape) * size, np.uint8)
    except MemoryError:
        pytest.skip(f'{math.prod(shape) * size >> 30} GiB of address space are needed')
    return torch.from_numpy(memory).view(dtype).view(shape)


def opt_in(cost):
    """Of a test that writes so much that it runs only when asked for."""
    return pytest.mark.skipif(
        os.environ.get('DDETR_TEST_LARGE') != '1',
        reason=f'takes {cost}: set DDETR_TEST_LARGE=1 to run it',
    )


def levels(sizes):
    """The tensors of one level."""
    return torch.tensor(sizes), torch.tensor([0])


def last_cell(height, width):
    """The (x, y) of its centre in 0..1; exact up to a thousandth of a cell."""
    return torch.tensor([(width - 0.5) / width, (height - 0.5) / height])


@OPERATORS
def test_a_forward_reads_the_last_element_of_value(fused):
    height, width, heads, channels = 4100, 4096, 2, 64
    value = zeros(1, height * width, heads, channels, dtype=torch.bfloat16)
    assert value.numel() > 2**31
    last = torch.arange(heads * channels).view(heads, channels)
    value[0, -1] = last
    centre = last_cell(height, width)
    if fused:
        points = centre.expand(1, 1, 1, 2), torch.zeros(1, 1, heads, 1, 1, 2)
        output = ms_deform_attn_fused(
            value, [(height, width)], None, *points, torch.zeros(1, 1, heads, 1, 1)
        )
    else:
        points = centre.expand(1, 1, heads, 1, 1, 2)
        output = ms_deform_attn(
            value, [(height, width)], None, points, torch.ones(1, 1, heads, 1, 1)
        )
    torch.testing.assert_close(output[0, 0].float(), last.flatten().float(), rtol=0.02, atol=0)


@OPERATORS
def test_a_forward_reads_the_last_location_and_weight(fused):
    queries, points = 2**24 + 8, 64
    where, weights = zeros(1, queries, 1, 1, points, 2), zeros(1, queries, 1, 1, points)
    assert where.numel() > 2**31
    value = torch.tensor([0.0, 0.0, 0.0, 1.0]).view(1, 4, 1, 1)
    if fused:
        # In cells from the references, which are all at the corner; softmax makes it a weight of 1.
        where[0, -1, 0, 0, -1] = 2 * LAST_OF_SQUARE
        weights[0, -1, 0, 0, -1] = 100.0
        output = ms_deform_attn_fused(value, SQUARE, None, zeros(1, queries, 1, 2), where, weights)
    else:
        where[0, -1, 0, 0, -1] = LAST_OF_SQUARE
        weights[0, -1, 0, 0, -1] = 1.0
        output = ms_deform_attn(value, SQUARE, None, where, weights)
    assert output[0, -1].item() == 1
    assert output.count_nonzero() == 1


@OPERATORS
def test_a_backward_reads_the_last_element_of_its_gradient_and_output(fused):
    queries, channels = 2**24 + 8, 128
    grad_output, output = (zeros(1, queries, channels, dtype=torch.bfloat16) for _ in range(2))
    assert grad_output.numel() > 2**31
    grad_output[0, -1] = 1
    value = torch.zeros(1, 4, 1, channels, dtype=torch.bfloat16)
    value[0, 3] = 1
    # Two points each; of the last query, the first one reads the last cell, with a weight of half.
    where, weights = zeros(1, queries, 1, 1, 2, 2), zeros(1, queries, 1, 1, 2)
    operator = torch.ops.ddetr_plugin
    if fused:
        where[0, -1, 0, 0, 0] = 2 * LAST_OF_SQUARE
        output[0, -1] = 0.5
        references = zeros(1, queries, 1, 2)
        grads = operator.ms_deform_attn_fused_backward(
            grad_output, output, value, *levels(SQUARE), references, where, weights, True, False
        )
        # The other point shares in softmax, and reads a quarter of the first cell.
        of_weights, of_value = [channels / 4, -channels / 4], [1 / 8, 0, 0, 1 / 2]
    else:
        where[0, -1, 0, 0, 0] = LAST_OF_SQUARE
        weights[0, -1, 0, 0, 0] = 0.5
        grads = operator.ms_deform_attn_backward(
            grad_output, value, *levels(SQUARE), where, weights, False
        )
        of_weights, of_value = [channels, 0], [0, 0, 0, 1 / 2]
    grad_value, grad_where, grad_weights = grads[:3]
    assert grad_weights[0, -1].flatten().tolist() == of_weights
    assert not grad_weights[0, :-1].any() and not grad_where[0, :-1].any()
    expected = torch.tensor(of_value, dtype=torch.bfloat16)
    assert torch.equal(grad_value[0, :, 0], expected[:, None].expand(4, channels))
    if fused:
        assert grads[3].shape == references.shape and not grads[3][0, :-1].any()


@pytest.mark.slow
@opt_in('6 GiB of memory')
def test_a_backward_writes_the_last_element_of_the_gradient_of_value():
    """Both operators run the same code for it."""
    height, width, heads, channels = 4100, 4096, 16, 8
    value = zeros(1, height * width, heads, channels, dtype=torch.bfloat16)
    assert value.numel() > 2**31
    points = last_cell(height, width).expand(1, 1, heads, 1, 1, 2)
    grad_output = torch.arange(1.0, heads * channels + 1).view(1, 1, -1)
    grad_value, _, _ = torch.ops.ddetr_plugin.ms_deform_attn_backward(
        grad_output.bfloat16(),
        value,
        *levels([(height, width)]),
        points,
        torch.ones(1, 1, heads, 1, 1),
        False,
    )
    torch.testing.assert_close(
        grad_value[0, -1].float().flatten(), grad_output.flatten(), rtol=0.02, atol=0
    )
    # What is missing there went to its neighbours, and nothing went anywhere else.
    assert not grad_value[0, : -width - 2].flatten().view(torch.int64).any()


@pytest.mark.slow
@opt_in('14 GiB of memory and two minutes')
@OPERATORS
def test_a_backward_writes_the_gradient_of_the_last_location_and_weight(fused):
    queries, points = 2**24 + 8, 64
    where, weights = zeros(1, queries, 1, 1, points, 2), zeros(1, queries, 1, 1, points)
    value = torch.tensor([0.0, 0.0, 0.0, 1.0]).view(1, 4, 1, 1)
    grad_output = zeros(1, queries, 1)
    grad_output[0, -1] = 1
    operator = torch.ops.ddetr_plugin
    if fused:
        where[0, -1, 0, 0, -1] = 2 * LAST_OF_SQUARE
        output = zeros(1, queries, 1)
        output[0, -1] = 1 / points
        grads = operator.ms_deform_attn_fused_backward(
            grad_output,
            output,
            value,
            *levels(SQUARE),
            zeros(1, queries, 1, 2),
            where,
            weights,
            False,
            False,
        )
        # w * (1 - w) for the point itself, -w * w for those that read nothing.
        expected = [(1 - 1 / points) / points, -1 / points**2]
    else:
        where[0, -1, 0, 0, -1] = LAST_OF_SQUARE
        weights[0, -1, 0, 0, -1] = 1.0
        grads = operator.ms_deform_attn_backward(
            grad_output, value, *levels(SQUARE), where, weights, False
        )
        expected = [1.0, 0.0]
    _, grad_where, grad_weights = grads[:3]
    assert grad_where.numel() > 2**31
    assert grad_weights[0, -1, 0, 0, -2:].flip(0).tolist() == pytest.approx(expected)
    assert grad_where[0, -1, 0, 0, -1].ne(0).all()
    for rest in (grad_where[0, :-1], grad_weights[0, :-1]):
        assert not any(piece.any() for piece in rest.split(1 << 20))
