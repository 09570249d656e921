"""The fused operator against softmax, location arithmetic and the plain operator in PyTorch."""

import math

import pytest
import torch
from op_cases import (
    SIZES,
    devices,
    fused_case,
    levels_of,
    needs_native,
    outputs_and_gradients,
    scalar_oracle,
    with_grad,
)

from ddetr_plugin.ops import ms_deform_attn_fused, ms_deform_attn_fused_reference

ALL_REFERENCES = pytest.mark.parametrize('reference_size', [2, 4])


@ALL_REFERENCES
def test_the_definition_equals_the_scalar_oracle(reference_size):
    value, shapes, starts, reference, offsets, logits = fused_case(reference_size)
    points = offsets.shape[4]
    locations = torch.empty_like(offsets)
    weights = torch.empty_like(logits)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in offsets.shape[:-1])):
        b, q, m, level, p = index.tolist()
        centre = reference[b, q, level]
        for axis in range(2):
            offset = offsets[b, q, m, level, p, axis]
            if reference_size == 2:
                step = offset / shapes[level, 1 - axis]
            else:
                step = offset / points * centre[2 + axis] / 2
            locations[b, q, m, level, p, axis] = centre[axis] + step
        row = logits[b, q, m]
        weights[b, q, m, level, p] = row[level, p].exp() / row.exp().sum()
    expected = scalar_oracle(value, shapes, starts, locations, weights)
    for function in (ms_deform_attn_fused, ms_deform_attn_fused_reference):
        output = function(value, shapes, starts, reference, offsets, logits)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)


@ALL_REFERENCES
@pytest.mark.parametrize('shared', [False, True])
# Few queries read values where they lie; many have them copied.
@pytest.mark.parametrize('queries', [4, 200])
@pytest.mark.parametrize('channels', [1, 8, 30, 32, 64, 71])
@pytest.mark.parametrize('device', devices())
def test_outputs_and_gradients_equal_the_definition(
    channels, queries, shared, reference_size, device
):
    arguments = fused_case(
        reference_size, shared, queries=queries, channels=channels, device=device
    )
    ours = outputs_and_gradients(ms_deform_attn_fused, arguments)
    theirs = outputs_and_gradients(ms_deform_attn_fused_reference, arguments)
    assert len(ours) == 5
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@ALL_REFERENCES
@pytest.mark.parametrize('levels, points', [(1, 1), (1, 2), (3, 5), (5, 8), (7, 13)])
@pytest.mark.parametrize('device', devices())
def test_any_number_of_levels_and_points(levels, points, reference_size, device):
    sizes = [(9 - i, 3 + i) for i in range(levels)]
    # One head: tasks are levels, and each needs the softmax over all of them.
    arguments = fused_case(
        reference_size, batch=1, heads=1, points=points, sizes=sizes, device=device
    )
    ours = outputs_and_gradients(ms_deform_attn_fused, arguments)
    theirs = outputs_and_gradients(ms_deform_attn_fused_reference, arguments)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@ALL_REFERENCES
@pytest.mark.parametrize('device', devices())
def test_gradcheck(reference_size, device):
    arguments = fused_case(
        reference_size, batch=1, queries=2, heads=2, channels=3, points=2, device=device
    )
    assert torch.autograd.gradcheck(ms_deform_attn_fused, with_grad(arguments), eps=1e-6)


@ALL_REFERENCES
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('queries', [4, 200])
@pytest.mark.parametrize('device', devices())
def test_16_bit_values_keep_float32_coordinates(dtype, queries, reference_size, device):
    value, *rest = fused_case(
        reference_size, queries=queries, channels=32, dtype=torch.float32, device=device
    )
    low = outputs_and_gradients(ms_deform_attn_fused, (value.to(dtype), *rest))
    exact = outputs_and_gradients(
        ms_deform_attn_fused_reference,
        [x.double() if x.is_floating_point() else x for x in (value.to(dtype), *rest)],
        dtype,
    )
    assert low[0].dtype == low[1].dtype == dtype
    assert all(x.dtype == torch.float32 for x in low[2:])
    # Inputs and grad_output are rounded alike. The output and the gradient of the value are rounded
    # once, by up to half a step; what that changes in the gradient of the logits, which the output
    # is needed for, is less. A twentieth more is left for sums in float32.
    tolerance = 1.05 * torch.finfo(dtype).eps / 2
    for a, b in zip(low, exact):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize('device', devices())
def test_float32_is_as_good_as_float32_can_be(device):
    arguments = fused_case(channels=32, queries=100, dtype=torch.float32, device=device)
    exact = outputs_and_gradients(
        ms_deform_attn_fused_reference,
        [x.double() if x.is_floating_point() else x for x in arguments],
    )
    for a, b in zip(outputs_and_gradients(ms_deform_attn_fused, arguments), exact):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize('device', devices())
def test_softmax_of_logits_of_any_size(device):
    value, shapes, starts, reference, offsets, logits = fused_case(
        dtype=torch.float32, channels=8, device=device
    )
    for scale in (1e-3, 30.0, 1e4, 1e30):
        arguments = (value, shapes, starts, reference, offsets, logits * scale)
        output = ms_deform_attn_fused(*arguments)
        torch.testing.assert_close(output, ms_deform_attn_fused_reference(*arguments))
    logits[0, 0, 0, 0, 0] = -math.inf
    output = ms_deform_attn_fused(value, shapes, starts, reference, offsets, logits)
    expected = ms_deform_attn_fused_reference(value, shapes, starts, reference, offsets, logits)
    torch.testing.assert_close(output, expected)
    logits[0, 0, 0, 1, 1] = math.nan
    logits[1, 2, 1, 1, 1] = math.inf
    output = ms_deform_attn_fused(value, shapes, starts, reference, offsets, logits)
    bad = output.isnan().view(2, 6, 3, 8).all(-1)
    assert bad.sum() == output.isnan().sum() / 8 == 2
    assert bad[0, 0, 0] and bad[1, 2, 1]


@ALL_REFERENCES
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('function', [ms_deform_attn_fused, ms_deform_attn_fused_reference])
def test_a_point_that_is_no_number_reads_zero_and_has_no_gradient(
    function, bad, reference_size, device
):
    arguments = fused_case(reference_size, channels=8, device=device)
    clean = outputs_and_gradients(function, arguments)
    arguments[4][0, 0, 0, 0, 0, 0] = bad
    changed = outputs_and_gradients(function, arguments)
    assert all(x.isfinite().all() for x in changed)
    assert not changed[3][0, 0, 0, 0, 0].any()
    # Another head of the same query does not notice.
    assert torch.equal(clean[0][0, 0, 8:], changed[0][0, 0, 8:])


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('function', [ms_deform_attn_fused, ms_deform_attn_fused_reference])
def test_a_reference_that_is_no_number_leaves_all_gradients_finite(function, bad, device):
    arguments = fused_case(4, channels=8, device=device)
    arguments[3][0, 0, 0, 2] = bad
    results = outputs_and_gradients(function, arguments)
    assert all(x.isfinite().all() for x in results)
    assert not results[2][0, 0, 0].any() and not results[3][0, 0, :, 0].any()


@pytest.mark.parametrize('integers', [False, True])
@pytest.mark.parametrize('batch', [1, 2, 3, 4])
@ALL_REFERENCES
def test_compiles_with_dynamic_sizes_that_equal_one_another(reference_size, batch, integers):
    """A batch of as many pictures as there are levels or numbers of a reference, and so on."""
    arguments = fused_case(
        reference_size, batch=batch, channels=8, points=4, sizes=((8, 8), (4, 4), (2, 2), (1, 1))
    )
    value, shapes, starts, *points = arguments
    if integers:
        shapes, starts = [(8, 8), (4, 4), (2, 2), (1, 1)], None
    torch.compiler.reset()
    compiled = torch.compile(ms_deform_attn_fused, fullgraph=True, dynamic=True, backend='eager')
    torch.testing.assert_close(
        compiled(value, shapes, starts, *points), ms_deform_attn_fused(*arguments)
    )


@pytest.mark.parametrize('device', devices())
def test_no_gradient_of_the_reference_unless_asked(device):
    value, shapes, starts, reference, offsets, logits = with_grad(fused_case(device=device))
    output = ms_deform_attn_fused(value, shapes, starts, reference.detach(), offsets, logits)
    output.sum().backward()
    assert reference.grad is None
    assert offsets.grad is not None


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('batch, queries', [(0, 5), (2, 0)])
def test_nothing_to_do(batch, queries, device):
    arguments = with_grad(fused_case(batch=batch, queries=queries, device=device))
    output = ms_deform_attn_fused(*arguments)
    assert output.shape == (batch, queries, 15)
    output.sum().backward()
    assert all(x.grad.shape == x.shape for x in arguments if x.requires_grad)


@pytest.mark.parametrize('device', devices())
def test_inputs_need_not_be_contiguous(device):
    arguments = fused_case(device=device)
    strided = [
        x.transpose(0, -1).contiguous().transpose(0, -1) if x.is_floating_point() else x
        for x in arguments
    ]
    assert not strided[4].is_contiguous()
    for a, b in zip(
        outputs_and_gradients(ms_deform_attn_fused, arguments),
        outputs_and_gradients(ms_deform_attn_fused, strided),
    ):
        assert torch.equal(a, b)


def test_integers_say_the_same_as_level_tensors():
    value, shapes, starts, *rest = fused_case()
    assert torch.equal(
        ms_deform_attn_fused(value, SIZES, None, *rest),
        ms_deform_attn_fused(value, shapes, starts, *rest),
    )


@needs_native
@pytest.mark.parametrize('device', devices())
def test_a_second_derivative_is_refused(device):
    value, *rest = with_grad(fused_case(device=device))
    output = ms_deform_attn_fused(value, *rest)
    (grad,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match='no second derivative'):
        grad.sum().backward()


@pytest.mark.parametrize(
    'name, shape, message',
    [
        ('reference_points', (2, 6, 3, 3), r'reference_points must be \(B, Q, L, 2 or 4\)'),
        ('reference_points', (2, 5, 3, 2), 'reference_points must be .* Q=6'),
        ('reference_points', (3, 6, 3, 2), 'reference_points must be .* B=1 or 2'),
        ('sampling_offsets', (2, 6, 3, 2, 3, 2), 'sampling_offsets must be .* L=3'),
        ('attention_logits', (2, 6, 3, 9), 'attention_logits must be'),
    ],
)
def test_wrong_shapes_are_named(name, shape, message):
    names = ('value', 'shapes', 'starts', 'reference_points', 'sampling_offsets')
    arguments = dict(zip((*names, 'attention_logits'), fused_case()))
    arguments[name] = torch.zeros(shape, dtype=torch.float64)
    for function in (ms_deform_attn_fused, ms_deform_attn_fused_reference):
        with pytest.raises(ValueError, match=message):
            function(*arguments.values())


def test_wrong_dtypes_are_named():
    arguments = list(fused_case(dtype=torch.float32))
    arguments[3] = arguments[3].double()
    with pytest.raises(ValueError, match='reference_points must be torch.float32 or narrower'):
        ms_deform_attn_fused(*arguments)


def test_float32_coordinates_are_widened_beside_a_float64_value():
    value, shapes, starts, *coordinates = fused_case()
    narrow = [x.float() for x in coordinates]
    expected = ms_deform_attn_fused(value, shapes, starts, *(x.double() for x in narrow))
    assert torch.equal(ms_deform_attn_fused(value, shapes, starts, *narrow), expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_autocast_leaves_the_precision_of_the_reference_alone(dtype):
    value, *arguments = fused_case(dtype=torch.float32)
    value = value.to(dtype)
    expected = ms_deform_attn_fused_reference(value, *arguments)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(ms_deform_attn_fused_reference(value, *arguments), expected)


@needs_native
@pytest.mark.parametrize('reference_grad', [False, True])
@pytest.mark.parametrize('device', devices())
def test_opcheck(reference_grad, device):
    arguments = fused_case(device=device)
    torch.library.opcheck(torch.ops.ddetr_plugin.ms_deform_attn_fused_forward, with_grad(arguments))
    output = ms_deform_attn_fused(*arguments)
    torch.library.opcheck(
        torch.ops.ddetr_plugin.ms_deform_attn_fused_backward,
        (torch.randn_like(output), output, *arguments, reference_grad, False),
    )


@pytest.mark.parametrize('device', devices())
def test_compiles_as_one_graph_with_gradients(device):
    def double(value, *rest):
        return 2 * ms_deform_attn_fused(value * 1, *rest)

    torch.compiler.reset()
    compiled = torch.compile(double, fullgraph=True, backend='aot_eager')
    for queries in (6, 9, 11):  # the second shape makes the queries a symbol
        arguments = fused_case(queries=queries, device=device)
        for ours, theirs in zip(
            outputs_and_gradients(compiled, arguments), outputs_and_gradients(double, arguments)
        ):
            torch.testing.assert_close(ours, theirs)


def test_more_levels_of_one_cell_than_anybody_has():
    sizes = [(1, 1)] * 9
    arguments = list(fused_case(sizes=sizes))
    assert torch.equal(arguments[1], levels_of(sizes)[0])
    torch.testing.assert_close(
        ms_deform_attn_fused(*arguments), ms_deform_attn_fused_reference(*arguments)
    )
