"""Wrong arguments are refused by name, and a missing native operator is announced."""

import warnings

import numpy as np
import pytest
import torch
from op_cases import case, needs_native, outputs_and_gradients

from ddetr_plugin.ops import _native, ms_deform_attn, ms_deform_attn_reference

VALUE, SHAPES, STARTS, LOCATIONS, WEIGHTS = range(5)

# (position, change, the argument the message must name)
WRONG = {
    'value of three dimensions': (VALUE, lambda x: x[0], 'value'),
    'value of integers': (VALUE, lambda x: x.long(), 'value'),
    'value of complex numbers': (VALUE, lambda x: x.to(torch.complex128), 'value'),
    'value without channels': (VALUE, lambda x: x[..., :0], 'value'),
    'value of another batch': (VALUE, lambda x: x[:1], 'sampling_locations'),
    'value of other heads': (VALUE, lambda x: x[:, :, :2], 'sampling_locations'),
    'value with a token too few': (VALUE, lambda x: x[:, 1:], 'spatial_shapes'),
    'value without tokens': (VALUE, lambda x: x[:, :0], 'spatial_shapes'),
    'shapes of one dimension': (SHAPES, lambda x: x.flatten(), 'spatial_shapes'),
    'shapes with three columns': (SHAPES, lambda x: x.repeat(1, 2)[:, :3], 'spatial_shapes'),
    'shapes of int32': (SHAPES, lambda x: x.int(), 'spatial_shapes'),
    'shapes without levels': (SHAPES, lambda x: x[:0], 'spatial_shapes'),
    'shapes of a level too few': (SHAPES, lambda x: x[:2], 'level_start_index'),
    'shapes swapped to other cells': (SHAPES, lambda x: x + 1, 'spatial_shapes'),
    'shapes with a negative size': (
        SHAPES,
        lambda x: torch.tensor([[-7, -5], [3, 4], [1, 1]]),
        'spatial_shapes',
    ),
    'shapes with an empty level': (
        SHAPES,
        lambda x: torch.tensor([[12, 4], [0, 4], [0, 1]]),
        'spatial_shapes',
    ),
    'starts of two dimensions': (STARTS, lambda x: x[:, None], 'level_start_index'),
    'starts of int32': (STARTS, lambda x: x.int(), 'level_start_index'),
    'starts of floats': (STARTS, lambda x: x.double(), 'level_start_index'),
    'starts shifted': (STARTS, lambda x: x + 1, 'level_start_index'),
    'starts far outside': (STARTS, lambda x: x * 10**12, 'level_start_index'),
    'locations of five dimensions': (LOCATIONS, lambda x: x[..., 0], 'sampling_locations'),
    'locations with z': (LOCATIONS, lambda x: x.repeat(1, 1, 1, 1, 1, 2), 'sampling_locations'),
    'locations of a level too few': (LOCATIONS, lambda x: x[:, :, :, :2], 'sampling_locations'),
    'locations without points': (LOCATIONS, lambda x: x[..., :0, :], 'sampling_locations'),
    'locations of integers': (LOCATIONS, lambda x: x.long(), 'sampling_locations'),
    'locations elsewhere': (LOCATIONS, lambda x: x.to('meta'), 'sampling_locations'),
    'weights of other points': (WEIGHTS, lambda x: x[..., 1:], 'attention_weights'),
    'weights of other queries': (WEIGHTS, lambda x: x[:, 1:], 'attention_weights'),
    'weights flattened': (WEIGHTS, lambda x: x.flatten(3), 'attention_weights'),
    'weights of integers': (WEIGHTS, lambda x: x.long(), 'attention_weights'),
    'weights elsewhere': (WEIGHTS, lambda x: x.to('meta'), 'attention_weights'),
}


def spoiled(name):
    position, change, blamed = WRONG[name]
    arguments = list(case())
    arguments[position] = change(arguments[position])
    return arguments, blamed


@pytest.mark.parametrize('name', WRONG)
@pytest.mark.parametrize('function', [ms_deform_attn, ms_deform_attn_reference])
def test_every_wrong_argument_is_refused_by_name(function, name):
    arguments, blamed = spoiled(name)
    with pytest.raises(ValueError, match=f'^{blamed} '):
        function(*arguments)


@pytest.mark.parametrize('position', [LOCATIONS, WEIGHTS])
@pytest.mark.parametrize('function', [ms_deform_attn, ms_deform_attn_reference])
def test_numbers_wider_than_the_arithmetic_are_refused_by_name(function, position):
    arguments = [x.float() if x.is_floating_point() else x for x in case()]
    arguments[position] = arguments[position].double()
    blamed = 'sampling_locations' if position == LOCATIONS else 'attention_weights'
    with pytest.raises(ValueError, match=f'^{blamed} must be torch.float32 or narrower'):
        function(*arguments)


@needs_native
@pytest.mark.parametrize('position', [LOCATIONS, WEIGHTS])
def test_the_raw_operator_takes_one_dtype_beside_a_value(position):
    arguments = list(case())
    arguments[position] = arguments[position].float()
    with pytest.raises(RuntimeError, match='must be '):
        torch.ops.ddetr_plugin.ms_deform_attn_forward(*arguments)


@needs_native
@pytest.mark.parametrize('name', [name for name in WRONG if 'elsewhere' not in name])
def test_the_raw_operators_refuse_every_wrong_argument_by_name(name):
    arguments, blamed = spoiled(name)
    op = torch.ops.ddetr_plugin
    with pytest.raises(RuntimeError, match=f'ms_deform_attn: {blamed} '):
        op.ms_deform_attn_forward(*arguments)
    grad_output = torch.zeros(2, 6, 15, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f'ms_deform_attn: {blamed} '):
        op.ms_deform_attn_backward(grad_output, *arguments, False)


@needs_native
@pytest.mark.parametrize(
    'grad_output',
    [
        torch.zeros(2, 6, 14, dtype=torch.float64),
        torch.zeros(2, 6, 3, 5, dtype=torch.float64),
        torch.zeros(1, 6, 15, dtype=torch.float64),
        torch.zeros(2, 6, 15),
    ],
)
def test_the_raw_backward_refuses_a_wrong_grad_output(grad_output):
    with pytest.raises(RuntimeError, match='ms_deform_attn: grad_output '):
        torch.ops.ddetr_plugin.ms_deform_attn_backward(grad_output, *case(), False)


@pytest.mark.parametrize(
    'sizes, starts, blamed',
    [
        (((7, 5), (3, 4), (1, 2)), None, 'spatial_shapes'),
        (((7, 5), (3, 4)), None, 'spatial_shapes'),
        (((48, 1), (0, 4), (0, 1)), None, 'spatial_shapes'),
        ((), None, 'spatial_shapes'),
        (((7, 5, 1), (3, 4, 1), (1, 1, 1)), None, 'spatial_shapes'),
        (48, None, 'spatial_shapes'),
        (((7, 5), (3, 4), (1, 1)), [0, 35, 48], 'level_start_index'),
        (((7, 5), (3, 4), (1, 1)), torch.tensor([0, 30, 47]), 'level_start_index'),
        (((7, 5), (3, 4), (1, 1)), torch.tensor([0.0, 35.0, 47.0]), 'level_start_index'),
        (((7, 5), (3, 4), (1, 1)), torch.tensor(7), 'level_start_index'),
        (((7, 5), (3, 4), (1, 1)), 7, 'level_start_index'),
        (((7, 5), (3, 4), (1, 1)), np.array([0, 30, 47]), 'level_start_index'),
        (((7.0, 5.0), (3, 4), (1, 1)), None, 'spatial_shapes'),
        ((('7', '5'), (3, 4), (1, 1)), None, 'spatial_shapes'),
        (((7, None), (3, 4), (1, 1)), None, 'spatial_shapes'),
    ],
)
@pytest.mark.parametrize('function', [ms_deform_attn, ms_deform_attn_reference])
def test_wrong_integers_are_refused_by_name(function, sizes, starts, blamed):
    value, _, _, locations, weights = case()
    with pytest.raises(ValueError, match=f'^{blamed} '):
        function(value, sizes, starts, locations, weights)


@pytest.mark.parametrize('position, blamed', [(VALUE, 'value'), (WEIGHTS, 'attention_weights')])
def test_what_is_no_tensor_is_refused_by_name(position, blamed):
    arguments = list(case())
    arguments[position] = [1.0]
    with pytest.raises(ValueError, match=f'^{blamed} must be a tensor, got list'):
        ms_deform_attn(*arguments)


@pytest.mark.parametrize(
    'position, name',
    list(
        enumerate(
            [
                'value',
                'spatial_shapes',
                'level_start_index',
                'sampling_locations',
                'attention_weights',
            ]
        )
    ),
)
def test_a_sparse_tensor_is_refused_by_name(position, name):
    arguments = list(case())
    arguments[position] = arguments[position].to_sparse()
    with pytest.raises(ValueError, match=f'^{name} must be a dense tensor'):
        ms_deform_attn(*arguments)


@pytest.mark.parametrize(
    'make',
    [
        lambda sizes: np.array(sizes, dtype=np.int16),
        lambda sizes: np.array(sizes, dtype=np.uint8),
        lambda sizes: [[torch.tensor(height), torch.tensor(width)] for height, width in sizes],
        lambda sizes: ((height, width) for height, width in sizes),
    ],
    ids=['int16', 'uint8', 'tensors', 'generator'],
)
@pytest.mark.parametrize('function', [ms_deform_attn, ms_deform_attn_reference])
def test_integers_of_any_kind_are_taken_and_spoil_no_later_call(function, make):
    sizes = [(200, 200), (2, 2)]  # 40000 is too much for 16 bits
    value, shapes, starts, locations, weights = case(channels=1, sizes=sizes)
    expected = function(value, shapes, starts, locations, weights)
    for given in (make(sizes), sizes):
        assert torch.equal(function(value, given, None, locations, weights), expected)


def test_tensor_shapes_without_starts_are_refused():
    value, shapes, _, locations, weights = case()
    with pytest.raises(ValueError, match='^level_start_index must be a tensor'):
        ms_deform_attn(value, shapes, None, locations, weights)


def test_a_library_that_cannot_be_loaded_is_reported_with_the_loaders_own_reason(
    tmp_path, monkeypatch
):
    path = tmp_path / '_C.abi3.so'
    path.write_text('no library')
    monkeypatch.setattr(_native, 'library_path', lambda name: path)
    assert 'file too short' in _native._load()


def test_without_the_native_operator_one_warning_names_reason_and_remedy(monkeypatch):
    arguments = case()
    expected = outputs_and_gradients(ms_deform_attn, arguments)
    monkeypatch.setattr(_native, '_load_error', 'the disk is empty')
    monkeypatch.setattr(_native, '_warned', False)
    with pytest.warns(RuntimeWarning, match='the disk is empty.*pip install --no-build-isolation'):
        ours = outputs_and_gradients(ms_deform_attn, arguments)
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ms_deform_attn(*arguments)
