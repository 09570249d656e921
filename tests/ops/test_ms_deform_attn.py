"""Values and gradients against scalar loops, finite differences, and each other."""

import math

import pytest
import torch
from op_cases import (
    case,
    devices,
    levels_of,
    needs_native,
    outputs_and_gradients,
    scalar_oracle,
    with_grad,
)

from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_reference

IMPLEMENTATIONS = [
    pytest.param(ms_deform_attn, id='native', marks=needs_native),
    pytest.param(ms_deform_attn_reference, id='reference'),
]
# Every vector width of every build, whole and partial vectors, more than one block of them.
CHANNELS = [1, 4, 8, 16, 20, 24, 30, 32, 48, 64, 71, 96, 128, 200]


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('function', IMPLEMENTATIONS)
def test_output_equals_scalar_loops(function, device):
    arguments = case(device=device)
    expected = scalar_oracle(*[x.cpu() for x in arguments])
    torch.testing.assert_close(function(*arguments).cpu(), expected, rtol=1e-12, atol=1e-12)


@needs_native
@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
# Few queries read `value` in place, many a packed copy of it.
@pytest.mark.parametrize('queries', [4, 150])
@pytest.mark.parametrize('channels', CHANNELS)
def test_native_output_and_gradients_equal_reference(channels, queries, dtype, device):
    arguments = case(channels=channels, queries=queries, dtype=dtype, device=device)
    native = outputs_and_gradients(ms_deform_attn, arguments)
    reference = outputs_and_gradients(ms_deform_attn_reference, arguments)
    # float32: sums of up to a few thousand products of size one, in different orders.
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    for ours, theirs in zip(native, reference):
        scale = theirs.abs().max().clamp(min=1)
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)


@needs_native
@pytest.mark.parametrize(
    'sizes, points',
    [(((9, 11),), 1), (((9, 11), (4, 3)), 40), (((2, 3),) * 7, 2), (((1, 1),), 1)],
)
def test_any_number_of_levels_and_points_equals_reference(sizes, points):
    arguments = case(sizes=sizes, points=points)
    native = outputs_and_gradients(ms_deform_attn, arguments)
    reference = outputs_and_gradients(ms_deform_attn_reference, arguments)
    for ours, theirs in zip(native, reference):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@needs_native
@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('channels', [1, 30, 32, 64, 71])
def test_gradients_equal_finite_differences(channels, device):
    value, shapes, starts, locations, weights = with_grad(
        case(1, 2, 2, channels, 2, ((3, 4), (1, 1)), device=device)
    )
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn(v, shapes, starts, x, w), (value, locations, weights)
    )


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('function', IMPLEMENTATIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(
    'x, expected',
    [
        (0.5 / 4, 1.0),  # centre of the first of four cells, holding 1, 2, 3, 4
        (1.0 / 4, 1.5),  # border between two cells
        (3.5 / 4, 4.0),
        (0.0, 0.5),  # the map's edge: half of the cell, half of nothing
        (1.0, 2.0),
        (-0.25 / 4, 0.25),
        (-0.5 / 4, 0.0),  # exactly one cell outside
        (4.5 / 4, 0.0),
        (-3.0, 0.0),
        (7.0, 0.0),
        (1e30, 0.0),
        (-1e30, 0.0),
        (math.nan, 0.0),
        (math.inf, 0.0),
        (-math.inf, 0.0),
    ],
)
def test_samples_by_hand(x, expected, dtype, function, device):
    value = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype, device=device).view(1, 4, 1, 1)
    location = torch.tensor([x, 0.5], dtype=dtype, device=device).view(1, 1, 1, 1, 1, 2)
    weight = torch.ones(1, 1, 1, 1, 1, dtype=dtype, device=device)
    assert function(value, *levels_of([(1, 4)], device), location, weight).item() == expected
    column = torch.tensor([0.5, x], dtype=dtype, device=device).view(1, 1, 1, 1, 1, 2)
    assert function(value, *levels_of([(4, 1)], device), column, weight).item() == expected


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('function', IMPLEMENTATIONS)
def test_a_level_of_one_cell_fades_to_zero_around_its_centre(function, device):
    value = torch.tensor([8.0], dtype=torch.float64, device=device).view(1, 1, 1, 1)
    positions = torch.tensor([[0.5, 0.5], [0.0, 0.5], [0.25, 0.0], [1.25, 0.75], [1.5, 0.5]])
    locations = positions.to(value).view(1, 5, 1, 1, 1, 2)
    weights = torch.ones(1, 5, 1, 1, 1, dtype=torch.float64, device=device)
    output = function(value, *levels_of([(1, 1)], device), locations, weights)
    assert output.flatten().tolist() == [8.0, 4.0, 3.0, 1.5, 0.0]


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('function', IMPLEMENTATIONS)
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 50.0, -50.0])
def test_a_location_that_reads_nothing_has_no_gradient_and_disturbs_no_other(bad, function, device):
    arguments = list(case(device=device))
    clean = outputs_and_gradients(function, arguments)
    arguments[3] = arguments[3].clone()
    arguments[3][0, 1, 2, 0, 1] = torch.tensor([0.4, bad])
    dirty = outputs_and_gradients(function, arguments)
    assert (dirty[2][0, 1, 2, 0, 1] == 0).all() and dirty[3][0, 1, 2, 0, 1] == 0
    assert all(tensor.isfinite().all() for tensor in dirty)
    other = torch.ones(arguments[4].shape, dtype=torch.bool, device=device)
    other[0, 1, 2, 0, 1] = False
    torch.testing.assert_close(dirty[2][other], clean[2][other], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dirty[3][other], clean[3][other], rtol=1e-12, atol=1e-12)


@needs_native
@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('queries', [3, 60])
@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_bad_value_reaches_only_samples_beside_it(bad, queries, device):
    value, shapes, starts, locations, weights = case(
        1, queries, 2, 8, 2, sizes=((4, 4),), device=device
    )
    locations[..., 0] = 0.8  # between the last two columns
    locations[:, 0] = torch.tensor([0.1, 0.1])  # reads cell (0, 0) and nothing inside but it
    locations[:, 1, 0] = torch.tensor([-5.0, 0.1])
    value[:, 0] = bad
    output = ms_deform_attn(value, shapes, starts, locations, weights)
    assert not output[:, 0].isfinite().any()
    assert output[:, 1:].isfinite().all()


@needs_native
@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_every_kind_of_pixel_beside_a_bad_value_is_as_in_grid_sample(bad, device):
    """On cells, between them, on the border, and exactly one cell outside."""
    pixels = torch.tensor([-1.5, -1, -0.75, 0, 0.25, 1, 1.5, 2, 2.75, 3, 3.25, 3.75, 4, 4.5])
    x, y = torch.meshgrid(pixels, pixels, indexing='ij')
    queries = x.numel()
    locations = torch.stack((x, y), -1).add(0.5).div(4).view(1, queries, 1, 1, 1, 2).to(device)
    weights = torch.ones(1, queries, 1, 1, 1, device=device)
    levels = levels_of([(4, 4)], device)
    for cell in (0, 3, 5, 12, 15):
        value = torch.ones(1, 16, 1, 8, device=device)
        value[0, cell] = bad
        ours = outputs_and_gradients(ms_deform_attn, (value, *levels, locations, weights))
        theirs = outputs_and_gradients(
            ms_deform_attn_reference, (value, *levels, locations, weights)
        )
        for mine, wanted in zip((ours[0], ours[3]), (theirs[0], theirs[3]), strict=True):
            torch.testing.assert_close(mine, wanted, equal_nan=True)


@needs_native
@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('queries', [40, 700])
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('channels', [5, 32])
def test_a_bad_value_on_the_border_goes_where_it_goes_in_grid_sample(
    channels, bad, queries, device
):
    """Infinity stays infinity on the border too, and beside samples that read nothing."""
    value, shapes, starts, locations, weights = case(
        1, queries, 2, channels, 2, sizes=((7, 9), (4, 5), (1, 1)), dtype=torch.float32,
        device=device,
    )  # fmt: skip
    value[0, 0] = bad  # the corner of the first level
    value[0, 63 + 20 - 1] = bad  # of the second level
    arguments = value, shapes, starts, locations, weights
    ours = outputs_and_gradients(ms_deform_attn, arguments)
    theirs = outputs_and_gradients(ms_deform_attn_reference, arguments)
    assert not theirs[0].isfinite().all() and theirs[0].isfinite().any()
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('function', IMPLEMENTATIONS)
@pytest.mark.parametrize('batch, queries', [(0, 4), (2, 0), (0, 0)])
def test_no_pictures_or_no_queries_give_empty_results_and_zero_gradients(
    batch, queries, function, device
):
    arguments = case(batch=batch, queries=queries, device=device)
    output, *grads = outputs_and_gradients(function, arguments)
    assert output.shape == (batch, queries, 15)
    for grad, argument in zip(grads, (arguments[0], arguments[3], arguments[4])):
        assert grad.shape == argument.shape and (grad == 0).all()


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('function', IMPLEMENTATIONS)
def test_strides_do_not_matter(function, device):
    arguments = case(channels=8, device=device)
    expected = outputs_and_gradients(function, arguments)

    def scattered(tensor):
        # Every second element of a twice as large tensor, its dimensions reversed in memory.
        wide = tensor.new_zeros(*reversed(tensor.shape), 2)[..., 0].permute(
            *reversed(range(tensor.dim()))
        )
        wide.copy_(tensor)
        assert not wide.is_contiguous()
        return wide

    leaves = [scattered(x) for x in arguments]
    floats = [leaf.requires_grad_() for leaf in leaves if leaf.is_floating_point()]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    grad_output = torch.randn(output.shape, generator=generator).to(output)
    grads = torch.autograd.grad(output, floats, scattered(grad_output))
    for ours, theirs in zip((output, *grads), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('function', IMPLEMENTATIONS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_16_bit_values_are_rounded_only_on_the_way_in_and_out(dtype, function, device):
    value, shapes, starts, locations, weights = case(
        channels=8, queries=40, dtype=torch.float32, device=device
    )
    value = value.to(dtype)
    output, grad_value, grad_locations, _ = outputs_and_gradients(
        function, (value, shapes, starts, locations, weights)
    )
    exact = outputs_and_gradients(
        ms_deform_attn_reference, (value.float(), shapes, starts, locations, weights), dtype
    )
    assert output.dtype == grad_value.dtype == dtype and grad_locations.dtype == torch.float32
    # One rounding is half a step; sums in float32 have errors, too.
    half_a_step = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(output.float(), exact[0], rtol=half_a_step, atol=1e-5)
    torch.testing.assert_close(grad_value.float(), exact[1], rtol=half_a_step, atol=1e-5)


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('function', IMPLEMENTATIONS)
def test_coordinates_keep_float32_on_a_wide_map_of_16_bit_values(function, device):
    # Neighbouring cells near 1000 are one bfloat16 coordinate apart in 8, so a coordinate in 16
    # bits would read another cell.
    value = (torch.arange(1000) % 7).to(device, torch.bfloat16).view(1, 1000, 1, 1)
    cells = torch.arange(900, 1000)
    locations = torch.stack([(cells + 0.5) / 1000, torch.full((100,), 0.5)], -1).to(device)
    weights = torch.ones(1, 100, 1, 1, 1, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = function(
            value, *levels_of([(1, 1000)], device), locations.view(1, 100, 1, 1, 1, 2), weights
        )
    assert output.dtype == torch.bfloat16
    # float32 coordinates are off by up to 6e-5 of a cell, times a step of 6 between cells.
    torch.testing.assert_close(
        output.float().flatten().cpu(), (cells % 7).float(), rtol=2**-8, atol=1e-3
    )


@pytest.mark.parametrize('function', IMPLEMENTATIONS)
def test_16_bit_locations_and_weights_are_widened(function):
    value, shapes, starts, locations, weights = case(channels=4, dtype=torch.float32)
    narrow = locations.half(), weights.bfloat16()
    output = function(value, shapes, starts, *narrow)
    expected = function(value, shapes, starts, *[x.float() for x in narrow])
    assert output.dtype == torch.float32 and torch.equal(output, expected)


@pytest.mark.parametrize('function', IMPLEMENTATIONS)
def test_sizes_may_be_pairs_of_integers(function):
    value, shapes, starts, locations, weights = case()
    expected = function(value, shapes, starts, locations, weights)
    for sizes in (((7, 5), (3, 4), (1, 1)), [[7, 5], [3, 4], [1, 1]]):
        for first in (None, starts, [0, 35, 47]):
            assert torch.equal(function(value, sizes, first, locations, weights), expected)


@needs_native
def test_sizes_first_used_in_inference_mode_can_be_trained_with_later():
    arguments = case(sizes=((13, 3), (2, 9)))
    sizes = ((13, 3), (2, 9))
    with torch.inference_mode():
        ms_deform_attn(arguments[0], sizes, None, *arguments[3:])
    value = arguments[0].requires_grad_()
    ms_deform_attn(value, sizes, None, *arguments[3:]).sum().backward()
    assert value.grad.abs().sum() > 0


@needs_native
def test_a_second_derivative_is_refused_with_the_way_out():
    value, shapes, starts, locations, weights = with_grad(case())
    output = ms_deform_attn(value, shapes, starts, locations, weights)
    (grad,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match='no second derivative; use ms_deform_attn_reference'):
        grad.sum().backward()


@pytest.mark.parametrize('function', IMPLEMENTATIONS)
def test_on_cell_borders_a_gradient_is_one_of_the_two_slopes(function):
    # Centres of cells of an 8 x 4 map, and the lines half a cell outside it: all exact in binary.
    x = (torch.arange(-1, 9, dtype=torch.float64) + 0.5) / 8
    y = (torch.arange(-1, 5, dtype=torch.float64) + 0.5) / 4
    locations = torch.stack(torch.meshgrid(x, y, indexing='ij'), dim=-1).view(1, -1, 1, 1, 1, 2)
    value = torch.randn(1, 32, 1, 3, dtype=torch.float64)
    weights = torch.ones_like(locations[..., 0])

    def total(locations):
        output = function(value, *levels_of([(4, 8)]), locations, weights)
        return output.sum(-1).flatten()  # of each query

    locations.requires_grad_()
    (gradient,) = torch.autograd.grad(total(locations).sum(), locations)
    step = 2.0**-10  # the function is piecewise linear: differences are its slopes
    for axis in range(2):
        moved = torch.zeros(2, dtype=torch.float64)
        moved[axis] = step
        with torch.no_grad():
            here = total(locations)
            after = (total(locations + moved) - here) / step
            before = (here - total(locations - moved)) / step
        mine = gradient[..., axis].flatten()
        nearest = torch.minimum((mine - after).abs(), (mine - before).abs())
        assert nearest.max() < 1e-9
