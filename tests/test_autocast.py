"""Mixed precision without a GPU."""

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS

import ddetr_plugin  # noqa: F401


def build(model, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    settings = dict(type='ddetr_plugin.AutocastOptimWrapper', optimizer=optimizer, **settings)
    return OPTIM_WRAPPERS.build(settings)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_the_forward_pass_is_cast_and_the_weights_stay_float32(dtype):
    model = torch.nn.Linear(3, 2)
    wrapper = build(model, dtype=dtype)
    before = model.weight.detach().clone()
    with wrapper.optim_context(model):
        output = model(torch.ones(1, 3))
    assert output.dtype == getattr(torch, dtype)
    wrapper.update_params(output.float().sum())
    # d(sum)/dw = 1 everywhere, so each weight moves by the learning rate.
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight, before - 0.5)


def test_gradients_of_two_iterations_make_one_step():
    model = torch.nn.Linear(3, 2)
    wrapper = build(model, accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    before = model.weight.detach().clone()
    for expected in (before, before - 0.5):
        with wrapper.optim_context(model):
            loss = model(torch.ones(1, 3)).float().sum()
        wrapper.update_params(loss)
        torch.testing.assert_close(model.weight, expected)


def test_an_unknown_dtype_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['bfloat16', 'float16'\], got 'float8'"):
        build(torch.nn.Linear(1, 1), dtype='float8')
