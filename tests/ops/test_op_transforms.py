"""torch.func and forward-mode differentiation: what works is right, the rest is refused."""

import warnings

import pytest
import torch
from op_cases import SIZES, case, devices, fused_case, needs_native
from torch.autograd import forward_ad

from ddetr_plugin.ops import (
    dropout,
    dropout_add,
    ms_deform_attn,
    ms_deform_attn_fused,
    relu_dropout,
)

pytestmark = needs_native
OPERATORS = pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
FORWARD_MODE = 'no forward-mode derivative .* reverse mode is supported'


def operator(fused, device='cpu', **options):
    """A function of the floating-point arguments alone, and these arguments."""
    make, function = (fused_case, ms_deform_attn_fused) if fused else (case, ms_deform_attn)
    value, shapes, starts, *rest = make(**options, device=device)
    return (lambda value, *rest: function(value, shapes, starts, *rest)), [value, *rest]


def loss_of(function):
    """A scalar whose gradient depends on every element of the output."""

    def loss(*floats):
        output = function(*floats)
        return (output * torch.arange(output.numel()).to(output).view(output.shape).cos()).sum()

    return loss


def gradients(loss, floats):
    leaves = [x.detach().requires_grad_() for x in floats]
    return torch.autograd.grad(loss(*leaves), leaves)


def stacked(floats, which, calls=3):
    """The arguments in `which` become `calls` different ones along a new last dimension."""
    return [
        torch.stack([x * (1 + 0.01 * i) for i in range(calls)], -1) if number in which else x
        for number, x in enumerate(floats)
    ]


def call_of(mapped, which, i):
    return [x[..., i] if number in which else x for number, x in enumerate(mapped)]


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@OPERATORS
@pytest.mark.parametrize('requires_grad', [False, True])
def test_a_tangent_is_refused_and_not_dropped(fused, requires_grad):
    function, floats = operator(fused)
    for number, x in enumerate(floats):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=FORWARD_MODE):
            dual = forward_ad.make_dual(x.clone().requires_grad_(requires_grad), torch.ones_like(x))
            function(*floats[:number], dual, *floats[number + 1 :])


@OPERATORS
def test_forward_mode_transforms_are_refused(fused):
    function, floats = operator(fused)
    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        torch.func.jvp(function, tuple(floats), tuple(map(torch.ones_like, floats)))
    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        torch.func.jacfwd(function)(*floats)
    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        torch.func.hessian(loss_of(function))(*floats)


@OPERATORS
def test_forward_mode_over_reverse_mode_is_refused(fused):
    function, floats = operator(fused)
    gradient = torch.func.grad(loss_of(function))
    value, *rest = floats
    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        torch.func.jvp(lambda x: gradient(x, *rest), (value,), (torch.ones_like(value),))


@pytest.mark.parametrize(
    'function',
    [
        lambda x: dropout(x, 0.5),
        lambda x: dropout_add(x, torch.ones_like(x), 0.5),
        lambda x: relu_dropout(x, 0.5),
    ],
    ids=['dropout', 'dropout_add', 'relu_dropout'],
)
def test_dropout_refuses_tangents(function):
    x = torch.randn(10)
    with pytest.raises(NotImplementedError, match=FORWARD_MODE):
        torch.func.jvp(function, (x,), (torch.ones(10),))


@pytest.mark.parametrize('gradient', [False, True])
def test_dropout_under_vmap_draws_one_mask_or_one_for_each_call(gradient):
    def function(x):
        return torch.func.grad(lambda x: dropout(x, 0.5).sum())(x) if gradient else dropout(x, 0.5)

    with warnings.catch_warnings():
        # torch's own rule for operators without one is slow, and says so.
        warnings.simplefilter('error')
        same = torch.func.vmap(function, in_dims=1, randomness='same')(torch.ones(50, 3))
        each = torch.func.vmap(function, in_dims=1, randomness='different')(torch.ones(50, 3))
    assert same.unique().tolist() == each.unique().tolist() == [0, 2]
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    assert not torch.equal(each[0], each[1])


@OPERATORS
def test_tangents_of_other_tensors_do_not_matter(fused):
    function, floats = operator(fused)
    expected = function(*floats)
    with forward_ad.dual_level():
        factor = forward_ad.make_dual(torch.tensor(2.0).double(), torch.tensor(1.0).double())
        output, tangent = forward_ad.unpack_dual(function(*floats) * factor)
    torch.testing.assert_close(output, 2 * expected)
    torch.testing.assert_close(tangent, expected)


@OPERATORS
@pytest.mark.parametrize('device', devices())
def test_gradients_of_torch_func_equal_those_of_autograd(fused, device):
    function, floats = operator(fused, device)
    loss, everything = loss_of(function), tuple(range(len(floats)))
    expected = gradients(loss, floats)
    assert_close(torch.func.grad(loss, everything)(*floats), expected)
    # The same for gradients that are wanted beyond the transform.
    leaves = [x.clone().requires_grad_() for x in floats]
    assert_close(torch.autograd.grad(torch.func.vjp(loss, *leaves)[0], leaves), expected)
    with torch.no_grad():
        assert_close(torch.func.grad(loss, everything)(*floats), expected)


@OPERATORS
def test_the_jacobian_of_torch_func_equals_that_of_autograd(fused):
    function, floats = operator(fused, queries=1, heads=1, channels=2, points=1)
    expected = torch.autograd.functional.jacobian(function, tuple(floats))
    jacobian = torch.func.jacrev(function, tuple(range(len(floats))))(*floats)
    assert_close(jacobian, expected)


@OPERATORS
def test_a_second_derivative_is_refused_in_torch_func(fused):
    function, (value, *rest) = operator(fused)

    def slope(value):
        return torch.func.grad(lambda x: function(x, *rest).square().sum())(value).square().sum()

    name = 'ms_deform_attn_fused_reference' if fused else 'ms_deform_attn_reference'
    with pytest.raises(RuntimeError, match=f'no second derivative; use {name} '):
        torch.func.grad(slope)(value)


@OPERATORS
@pytest.mark.parametrize('which', [(0,), (1, 2), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize('device', devices())
def test_vmap_equals_one_call_after_another(fused, which, device):
    function, floats = operator(fused, device)
    which = [number for number in which if number < len(floats)]
    mapped = stacked(floats, which)
    in_dims = tuple(-1 if number in which else None for number in range(len(floats)))
    output = torch.func.vmap(function, in_dims)(*mapped)
    expected = [function(*call_of(mapped, which, i)) for i in range(3)]
    assert_close([output], [torch.stack(expected)])


@OPERATORS
@pytest.mark.parametrize('shared', [False, True])
def test_vmap_of_gradients_equals_one_call_after_another(fused, shared):
    function, floats = operator(fused, **({'shared': shared} if fused else {}))
    loss, everything = loss_of(function), tuple(range(len(floats)))
    mapped = stacked(floats, everything)
    ours = torch.func.vmap(torch.func.grad(loss, everything), in_dims=-1)(*mapped)
    each = [gradients(loss, call_of(mapped, everything, i)) for i in range(3)]
    assert_close(ours, [torch.stack(grads) for grads in zip(*each)])


@OPERATORS
def test_gradients_through_vmap_equal_those_of_a_loop(fused):
    function, floats = operator(fused)
    mapped = stacked(floats, (0, len(floats) - 1))
    in_dims = (-1, *[None] * (len(floats) - 2), -1)

    def by_vmap(*mapped):
        return torch.func.vmap(function, in_dims)(*mapped)

    def by_loop(*mapped):
        calls = [call_of(mapped, (0, len(floats) - 1), i) for i in range(3)]
        return torch.stack([function(*call) for call in calls])

    assert_close(gradients(loss_of(by_vmap), mapped), gradients(loss_of(by_loop), mapped))


@OPERATORS
def test_vmap_inside_vmap(fused):
    function, (value, *rest) = operator(fused)
    values = torch.stack([torch.stack([value * (i + 2 * j) for i in range(2)]) for j in range(3)])
    twice = torch.func.vmap(torch.func.vmap(lambda value: function(value, *rest)))
    expected = [torch.stack([function(x, *rest) for x in row]) for row in values]
    assert_close([twice(values)], [torch.stack(expected)])


@pytest.mark.parametrize('position, name', [(1, 'spatial_shapes'), (2, 'level_start_index')])
def test_vmap_refuses_levels_that_differ_from_call_to_call(position, name):
    arguments = list(case())
    arguments[position] = torch.stack([arguments[position]] * 2)
    in_dims = [None] * 5
    in_dims[position] = 0
    with pytest.raises(ValueError, match=f'{name} must be the same for all calls of torch.vmap'):
        torch.func.vmap(ms_deform_attn, tuple(in_dims))(*arguments)


def test_sizes_first_used_inside_a_transform_work_outside_and_the_other_way_round():
    value, _, _, locations, weights = case()

    def loss(value, sizes):
        return ms_deform_attn(value, sizes, None, locations, weights).square().sum()

    for sizes in (SIZES, [[5, 7], [4, 3], [1, 1]]):
        ours = torch.func.grad(loss)(value, sizes)
        (expected,) = gradients(lambda value: loss(value, sizes), [value])  # noqa: B023
        assert_close([ours, torch.func.grad(loss)(value, sizes)], [expected, expected])


@OPERATORS
def test_compiled_transforms_equal_eager_ones(fused):
    function, (value, *rest) = operator(fused)
    gradient = torch.func.grad(lambda value: loss_of(function)(value, *rest))
    values = torch.stack([value, 2 * value])
    torch.compiler.reset()
    for transformed, argument in ((gradient, value), (torch.func.vmap(gradient), values)):
        compiled = torch.compile(transformed, fullgraph=True, backend='aot_eager')
        assert_close([compiled(argument)], [transformed(argument)])
