"""Malformed calls that hypothesis thinks up: refused, or as the definition has it; never a crash.

Run under sanitizers, too (`make sanitize`): an argument that slips through must not read out of
bounds.
"""

import pytest
import torch

pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_cases import case, devices, fused_case, needs_native, with_grad

from ddetr_plugin.ops import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)

pytestmark = needs_native
many = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))

SIZES = ((3, 2), (2, 2), (1, 1))
OPERATORS = {
    'plain': (ms_deform_attn, ms_deform_attn_reference, case),
    'fused': (ms_deform_attn_fused, ms_deform_attn_fused_reference, fused_case),
}
# Products of some of these are 0, 1 or 11 (the number of tokens) modulo 2^32 and 2^64.
LARGE = [2**16, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**33, 2**62, 2**63 - 1, -(2**63)]
INTEGERS = st.one_of(st.integers(-3, 12), st.sampled_from(LARGE))
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHER_DTYPES = [torch.int64, torch.int32, torch.bool, torch.complex64, torch.uint8]


def cut(tensor, dim, length):
    """`tensor` with `length` entries along a dimension: fewer, or the first ones again."""
    index = torch.arange(length) % max(tensor.shape[dim], 1)
    if tensor.shape[dim] == 0 and length:
        return tensor
    return tensor.index_select(dim, index.to(tensor.device))


def strided(tensor, how):
    """The same numbers, differently laid out in memory."""
    if how == 'transposed':
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if how == 'sliced':
        padded = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), 77).to(tensor)
        padded[..., 1::2] = tensor
        return padded[..., 1::2]
    # Not at the start of its memory.
    memory = torch.full((tensor.numel() + 3,), 77).to(tensor)
    memory[3:] = tensor.flatten()
    return memory[3:].view(tensor.shape)


CHANGES = st.one_of(
    st.tuples(st.just('cut'), st.integers(0, 5), st.integers(0, 5), st.integers(0, 4)),
    st.tuples(st.just('dtype'), st.integers(0, 5), st.sampled_from(DTYPES + OTHER_DTYPES)),
    st.tuples(
        st.just('stride'), st.integers(0, 5), st.sampled_from(['transposed', 'sliced', 'offset'])
    ),
    st.tuples(st.just('flatten'), st.integers(0, 5)),
    st.tuples(st.just('unsqueeze'), st.integers(0, 5)),
    st.tuples(st.just('number'), st.integers(1, 2), st.integers(0, 5), INTEGERS),
    st.tuples(st.just('expand'), st.integers(0, 5)),
)
CALLS = st.fixed_dictionaries(
    {
        'batch': st.sampled_from([0, 1, 2]),
        'queries': st.sampled_from([0, 1, 3]),
        'heads': st.sampled_from([1, 2]),
        'channels': st.sampled_from([1, 3, 8]),
        'points': st.sampled_from([1, 2]),
        'dtype': st.sampled_from(DTYPES),
    }
)


def changed(arguments, changes):
    """The arguments after all `changes` that can be made to them."""
    arguments = list(arguments)
    for kind, position, *how in changes:
        position %= len(arguments)
        x = arguments[position]
        if kind == 'cut' and x.dim():
            x = cut(x, how[0] % x.dim(), how[1])
        elif kind == 'dtype':
            x = x.real.to(how[0]) if x.is_complex() else x.to(how[0])
        elif kind == 'stride' and x.dim():
            x = strided(x, how[0])
        elif kind == 'flatten':
            x = x.flatten()
        elif kind == 'unsqueeze':
            x = x[None]
        elif kind == 'number' and x.numel() and x.dtype == torch.int64:
            x = x.contiguous().clone()
            x.view(-1)[how[0] % x.numel()] = how[1]
        elif kind == 'expand' and x.dim() and x.shape[0]:
            # All pictures or levels are the first one, in one place of memory.
            x = x[:1].expand(x.shape)
        arguments[position] = x
    return arguments


def call(function, arguments):
    """Output and gradients, or the error that the function raises for callers' mistakes."""
    try:
        leaves = with_grad(arguments)
        output = function(*leaves)
    except ValueError as error:
        return error
    wanted = [x for x in leaves if x.requires_grad]
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), wanted)]


@pytest.mark.parametrize('name', OPERATORS)
@many
@given(CALLS, st.lists(CHANGES, max_size=4))
def test_native_and_reference_refuse_the_same_calls_and_agree_on_all_others(name, shape, changes):
    native, reference, make = OPERATORS[name]
    coordinates = torch.float64 if shape['dtype'] == torch.float64 else torch.float32
    value, *rest = make(**dict(shape, dtype=coordinates), sizes=SIZES)
    arguments = changed([value.to(shape['dtype']), *rest], changes)
    ours, theirs = call(native, arguments), call(reference, arguments)
    if isinstance(theirs, ValueError):
        assert str(ours) == str(theirs)
        return
    low = arguments[0].dtype in (torch.float16, torch.bfloat16)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = b.abs().max().clamp(min=1) if b.numel() else 1
        # An output that lies midway is rounded to either neighbour, one step apart. Doubled, it is
        # grad_output, so that its terms in a gradient are off by a step, and the gradient is
        # rounded again. 8 steps: terms may be larger than the largest sum.
        tolerance = 8 * torch.finfo(arguments[0].dtype).eps if low else 1e-4
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize('name', OPERATORS)
@many
@given(CALLS, st.lists(CHANGES, min_size=1, max_size=4), st.booleans())
def test_the_raw_operators_refuse_whatever_the_public_functions_refuse(
    name, shape, changes, deterministic
):
    """Forward and backward, without the checks in Python."""
    native, _, make = OPERATORS[name]
    wide = torch.float64 if shape['dtype'] == torch.float64 else torch.float32
    value, *rest = make(**dict(shape, dtype=wide), sizes=SIZES)
    arguments = changed([value.to(shape['dtype']), *rest], changes)
    refused = isinstance(call(native, arguments), ValueError)
    op = torch.ops.ddetr_plugin
    infix = '_fused' if name == 'fused' else ''
    value = arguments[0]
    output = torch.ones(shape['batch'], shape['queries'], shape['heads'] * shape['channels'])
    if value.is_floating_point():
        output = output.to(value.dtype)
    extra = (output, output) if name == 'fused' else (output,)
    last = (True, deterministic) if name == 'fused' else (deterministic,)
    # The raw operators take wide coordinates only.
    narrow = any(x.is_floating_point() and x.dtype != wide for x in arguments[3:])
    calls = (
        (getattr(op, f'ms_deform_attn{infix}_forward'), arguments),
        (getattr(op, f'ms_deform_attn{infix}_backward'), (*extra, *arguments, *last)),
    )
    for function, given_arguments in calls:
        if refused:
            with pytest.raises(RuntimeError, match='ms_deform_attn: '):
                function(*given_arguments)
            continue
        try:
            results = function(*given_arguments)
        except RuntimeError as error:
            # Shapes that fit one another may not fit the gradient made above.
            assert narrow or 'grad_output' in str(error) or 'must be' in str(error)
        else:
            for result in results if isinstance(results, tuple) else (results,):
                assert result.isfinite().all()


@pytest.mark.parametrize('name', OPERATORS)
@pytest.mark.parametrize('device', devices())
@many
@given(st.lists(st.tuples(INTEGERS, INTEGERS), min_size=1, max_size=4))
def test_level_sizes_that_overflow_are_refused(name, device, sizes):
    """As tensors and as integers; their products may be the number of tokens modulo 2^64."""
    native, _, make = OPERATORS[name]
    value, _, _, *rest = make(batch=1, queries=2, sizes=((11, 1),), device=device)
    tokens = sum(height * width for height, width in sizes)
    right = tokens == 11 and min(map(min, sizes)) > 0 and len(sizes) == 1
    shapes = torch.tensor(sizes)
    starts = torch.zeros(len(sizes), dtype=torch.int64)
    for given_sizes, given_starts in ((shapes, starts), (sizes, None)):
        if right:
            assert native(value, given_sizes, given_starts, *rest).isfinite().all()
        else:
            with pytest.raises(ValueError, match='spatial_shapes|level_start_index|L='):
                native(value, given_sizes, given_starts, *rest)


@pytest.mark.parametrize('name', OPERATORS)
@pytest.mark.parametrize('batch', [2**48, 2**58])
def test_pictures_that_overflow_memory_are_an_error_and_no_crash(name, batch):
    """They share one place: the tensors exist, but no copy of them, nor their gradients, can."""
    native, _, make = OPERATORS[name]
    value, shapes, starts, *rest = make(batch=1, queries=1, heads=1, channels=1, sizes=SIZES)
    value, *points = (x.expand(batch, *x.shape[1:]) for x in (value, *rest[-2:]))
    with pytest.raises(RuntimeError):
        native(value, shapes, starts, *rest[:-2], *points)
