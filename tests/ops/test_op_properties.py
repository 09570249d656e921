"""The operators on shapes and coordinates that hypothesis thinks up."""

import math

import pytest
import torch

pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_cases import levels_of, needs_native, off_the_knots, outputs_and_gradients, scalar_oracle

from ddetr_plugin.ops import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)

pytestmark = needs_native
few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
shapes = st.fixed_dictionaries(
    {
        'batch': st.integers(1, 3),
        'queries': st.integers(1, 40),
        'heads': st.integers(1, 4),
        'channels': st.integers(1, 70),
        'points': st.integers(1, 6),
        'sizes': st.lists(
            st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5
        ),
        'seed': st.integers(0, 2**31),
    }
)


def tensors(batch, queries, heads, channels, points, sizes, seed, spread=1.4):
    """Arguments in float64; `spread` 1 keeps all samples on the map."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * width for height, width in sizes)
    lead = (batch, queries, heads, len(sizes), points)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=torch.float64)
    locations = torch.rand(*lead, 2, generator=generator, dtype=torch.float64)
    locations = off_the_knots((locations - 0.5) * spread + 0.5, sizes)
    weights = torch.randn(*lead, generator=generator, dtype=torch.float64)
    return value, *levels_of(sizes), locations, weights


def assert_all_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        scale = b.abs().max().clamp(min=1)
        torch.testing.assert_close(a.double() / scale, b.double() / scale, rtol=0, atol=tolerance)


@few
@given(shapes)
def test_output_and_gradients_equal_the_definition(shape):
    arguments = tensors(**shape)
    expected = outputs_and_gradients(ms_deform_attn_reference, arguments)
    assert_all_close(outputs_and_gradients(ms_deform_attn, arguments), expected, 1e-11)
    low = [x.float() if x.is_floating_point() else x for x in arguments]
    assert_all_close(outputs_and_gradients(ms_deform_attn, low), expected, 1e-4)


@few
@given(shapes, st.sampled_from([2, 4]), st.booleans())
def test_the_fused_operator_equals_its_definition(shape, reference_size, shared):
    value, cells, starts, locations, logits = tensors(**shape)
    batch, queries, _, levels, points, _ = locations.shape
    reference = torch.full((1 if shared else batch, queries, levels, reference_size), 0.4)
    reference = reference.double() + 0.2 * torch.rand(reference.shape, dtype=torch.float64)
    place = reference[:, :, None, :, None]
    unit = place[..., 2:] / 2 / points if reference_size == 4 else 1 / cells.flip(-1)[:, None]
    arguments = (value, cells, starts, reference, (locations - place[..., :2]) / unit, logits)
    assert_all_close(
        outputs_and_gradients(ms_deform_attn_fused, arguments),
        outputs_and_gradients(ms_deform_attn_fused_reference, arguments),
        1e-10,
    )


@settings(few, max_examples=15)
@given(
    shapes,
    st.lists(
        st.one_of(
            st.floats(-0.5, 1.5),
            st.sampled_from([math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0, 1.0]),
        ),
        min_size=8,
        max_size=8,
    ),
)
def test_any_coordinate_at_all_equals_the_scalar_oracle(shape, coordinates):
    shape = dict(shape, batch=1, queries=2, heads=2, channels=min(shape['channels'], 9))
    value, cells, starts, locations, weights = tensors(**shape)
    coordinates = torch.tensor(coordinates, dtype=torch.float64)
    locations.view(-1)[: min(8, locations.numel())] = coordinates[: locations.numel()]
    expected = scalar_oracle(value, cells, starts, locations, weights)
    for function in (ms_deform_attn, ms_deform_attn_reference):
        output = function(value, cells, starts, locations, weights)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


@few
@given(shapes, st.sampled_from([torch.float16, torch.bfloat16]))
def test_16_bit_values_lose_no_more_than_their_own_rounding(shape, dtype):
    value, cells, starts, locations, weights = tensors(**shape, spread=1.0)
    value, locations, weights = value.to(dtype), locations.float(), weights.float()
    exact = ms_deform_attn_reference(
        value.double(), cells, starts, locations.double(), weights.double()
    )
    output = ms_deform_attn(value, cells, starts, locations, weights)
    assert output.dtype == dtype
    # Inputs are rounded alike: what is left is one rounding of each output, by half a step, and
    # the errors of float32 in coordinates and sums.
    half_a_step = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(output.double(), exact, rtol=half_a_step, atol=1e-4)
