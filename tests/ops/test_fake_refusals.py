"""Tracing refuses what running refuses, naming the same argument, and accepts what running does."""

import re

import pytest
import torch
from op_cases import case, fused_case, needs_native
from torch._subclasses.fake_tensor import FakeTensorMode

pytestmark = needs_native

# Every argument in other dtypes, of other shapes and elsewhere.
CHANGES = {
    'float16': lambda x: x.half(),
    'bfloat16': lambda x: x.bfloat16(),
    'float32': lambda x: x.float(),
    'float64': lambda x: x.double(),
    'int32': lambda x: x.int(),
    'int64': lambda x: x.long(),
    'complex': lambda x: x.to(torch.complex64),
    'bool': lambda x: x.bool(),
    'a dimension less': lambda x: x[0],
    'the first alone': lambda x: x[:1],
    'nothing': lambda x: x[:0],
    'a last one less': lambda x: x[..., 1:],
    'no last ones': lambda x: x[..., :0],
    'a dimension more': lambda x: x[None],
}


def cases():
    """Name to (operator, arguments, how many come before `value`)."""
    op = torch.ops.ddetr_plugin
    plain, fused = case(dtype=torch.float32), fused_case(dtype=torch.float32)
    result = torch.randn(2, 6, 15)
    x, seed = torch.randn(4, 8), torch.tensor([3])
    return {
        'forward': (op.ms_deform_attn_forward, plain),
        'backward': (op.ms_deform_attn_backward, (result, *plain, False)),
        'fused forward': (op.ms_deform_attn_fused_forward, fused),
        'fused backward': (
            op.ms_deform_attn_fused_backward,
            (result, result, *fused, True, False),
        ),
        'dropout': (op.dropout, (x, seed, 0.5)),
        'dropout_add': (op.dropout_add, (x, x.clone(), seed, 0.5)),
        'dropout_add bfloat16': (op.dropout_add, (x.bfloat16(), x.bfloat16(), seed, 0.5)),
        'relu_dropout': (op.relu_dropout, (x, seed, 0.5)),
        'relu_dropout_backward': (op.relu_dropout_backward, (x, x.relu(), 0.5)),
    }


def refusal(operator, arguments):
    """The name of the argument that is refused, and why; None if all is well."""
    try:
        operator(*arguments)
    except RuntimeError as error:
        return re.match(r'ms_deform_attn: (\w+) (must (be|have)( on)?)', str(error)).groups()[:2]
    return None


def faked(mode, arguments, device=None, position=None):
    """Fake tensors like the arguments; that at a position, or all, on a device of which there is
    none here."""
    out = []
    for i, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            if device is not None and position in (None, i):
                argument = torch.empty(argument.shape, dtype=argument.dtype, device=device)
            else:
                argument = mode.from_tensor(argument)
        out.append(argument)
    return out


@pytest.mark.parametrize('name', cases())
def test_fake_and_meta_tensors_are_refused_and_accepted_as_real_ones(name):
    operator, arguments = cases()[name]
    refused = 0
    for position, argument in enumerate(arguments):
        if not isinstance(argument, torch.Tensor):
            continue
        for change in CHANGES.values():
            changed = list(arguments)
            changed[position] = change(argument)
            real = refusal(operator, changed)
            if real is not None and real[0] == 'spatial_shapes' and argument.dim() == 4:
                continue  # the cells that it holds are not those of value: tracing sees no numbers
            refused += real is not None
            with FakeTensorMode() as mode:
                assert refusal(operator, faked(mode, changed)) == real, (position, changed)
            meta = [x.to('meta') if isinstance(x, torch.Tensor) else x for x in changed]
            assert refusal(operator, meta) == real, (position, changed)
    assert refused >= 15


@pytest.mark.parametrize('name', cases())
def test_fake_tensors_on_different_devices_are_refused(name):
    operator, arguments = cases()[name]
    dropping = 'dropout' in name
    tensors = [i for i, x in enumerate(arguments) if isinstance(x, torch.Tensor)]
    for position in tensors:
        with FakeTensorMode() as mode:
            said = refusal(operator, faked(mode, arguments, 'cuda', position))
        assert said is not None, position
    # All on a GPU: attention runs there, our dropout does not; levels may stay on the CPU.
    with FakeTensorMode() as mode:
        everything = faked(mode, arguments, 'cuda')
        assert (refusal(operator, everything) is not None) == dropping
        if not dropping:
            first = len(tensors) - (6 if 'fused' in name else 5)
            levels = everything[:]
            for i in (first + 1, first + 2):
                levels[i] = mode.from_tensor(arguments[i])
                one = everything[:]
                one[i] = levels[i]
                assert refusal(operator, one)[0] == 'level_start_index'
            assert refusal(operator, levels) is None


@pytest.mark.parametrize('p', [-0.1, 1.0, float('nan')])
def test_a_probability_out_of_range_is_refused_while_tracing_too(p):
    for name in ('dropout', 'dropout_add', 'relu_dropout', 'relu_dropout_backward'):
        operator, arguments = cases()[name]
        arguments = (*arguments[:-1], p)
        assert refusal(operator, arguments)[0] == 'p'
        with FakeTensorMode() as mode:
            assert refusal(operator, faked(mode, arguments))[0] == 'p'
