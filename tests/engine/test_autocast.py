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
    wrapper.update_params(output.float().sum() / 4)
    # The derivative is 1/4 everywhere, so each weight moves by that much of the learning rate.
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight, before - 0.125)


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


def scaled_step(model, wrapper, factor=1.0):
    with wrapper.optim_context(model):
        output = model(torch.ones(1, 3))
    wrapper.update_params(output.float().sum() * factor)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_small_gradients_do_not_vanish(dtype):
    """1e-9 is zero in float16, whose smallest number is 6e-8."""
    assert torch.tensor(1e-9).half() == 0
    model = torch.nn.Linear(3, 2)
    wrapper = build(model, dtype=dtype)
    steps = []
    wrapper.optimizer.register_step_pre_hook(lambda *_: steps.append(model.weight.grad.clone()))
    scaled_step(model, wrapper, 1e-9)
    torch.testing.assert_close(steps[0], torch.full((2, 3), 1e-9), rtol=0.01, atol=0)


def test_gradients_are_clipped_in_their_own_scale():
    model = torch.nn.Linear(3, 2)
    wrapper = build(model, dtype='float16', clip_grad=dict(max_norm=0.1))
    before = model.weight.detach().clone()
    scaled_step(model, wrapper, 0.25)
    # Six weights and two biases have gradients of 1/4.
    torch.testing.assert_close(model.weight, before - 0.5 * 0.1 / 8**0.5)
    norm = wrapper.message_hub.log_scalars['train/grad_norm'].current()
    assert norm == pytest.approx(8**0.5 / 4)


def test_a_step_that_overflows_is_left_out_and_halves_the_scale():
    model = torch.nn.Linear(3, 2)
    wrapper = build(model, dtype='float16')
    before = model.weight.detach().clone()
    scaled_step(model, wrapper, 1e5)
    assert torch.equal(model.weight, before)
    assert wrapper.loss_scaler.get_scale() == 2.0**15
    scaled_step(model, wrapper, 0.25)
    torch.testing.assert_close(model.weight, before - 0.125)


def test_checkpoints_hold_the_scale_and_those_without_one_load_too():
    model = torch.nn.Linear(3, 2)
    wrapper = build(model, dtype='float16')
    scaled_step(model, wrapper, 1e5)
    state = wrapper.state_dict()
    again = build(torch.nn.Linear(3, 2), dtype='float16')
    again.load_state_dict(state)
    assert again.loss_scaler.get_scale() == 2.0**15
    assert 'loss_scaler' in state  # a caller's dict is left alone
    other = build(torch.nn.Linear(3, 2), dtype='bfloat16')
    other.load_state_dict(state)
    assert 'loss_scaler' not in other.state_dict()
    again.load_state_dict(other.state_dict())
    assert again.loss_scaler.get_scale() == 2.0**15
