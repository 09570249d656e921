"""What rounding to 16 bits may change, measured without any arithmetic in 16 bits.

How far a result in 16 bits lies from that in float32 differs from CPU to CPU: their instructions
sum in other orders and precisions. What all have in common is that each layer's output and weights
are rounded. So the yardstick is made in float32: every output of a layer is moved at random by up
to two roundings, one for the output and one for the weights, in several draws. Thresholds, matches
and orders that such a rounding flips are flipped in the draws, too.
"""

from contextlib import contextmanager

import torch

# How many times the typical change in the draws a change may be. Errors of many roundings are
# near to normally distributed; what is left is for the operations between layers, such as softmax
# and residual sums, which are rounded, too, but not moved in the draws.
FACTOR = 5


@contextmanager
def moved(model, dtype, seed):
    """Within, each layer without children moves its floating output by up to two roundings."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.finfo(dtype).eps

    def move(module, arguments, output):
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            # One rounding moves a number by up to half a step.
            noise = torch.rand(output.shape, generator=generator).mul_(2).sub_(1)
            return output * (1 + step * noise)
        return None

    layers = [m for m in model.modules() if next(m.children(), None) is None]
    handles = [layer.register_forward_hook(move) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def distance(ours, theirs) -> float:
    """Root of the mean squared difference of two tensors."""
    return (ours.double() - theirs.double()).square().mean().sqrt().item()


def assert_as_near_as_rounding_allows(low, exact, run, model, dtype, draws=4):
    """Fails where 16 bits change a result by more than roundings do.

    Args:
        low: results in 16 bits, by name; floating tensors.
        exact: those in float32.
        run: function without arguments that makes them again; random numbers as before.
        model: that `run` calls.
        dtype: of 16 bits.
        draws: how often the typical change is looked at.
    """
    changes = dict.fromkeys(exact, 0.0)
    for seed in range(draws):
        with moved(model, dtype, seed), torch.no_grad():
            result = run()
        for name, value in exact.items():
            changes[name] += distance(result[name], value) ** 2 / draws
    for name, value in exact.items():
        # At least what rounding this very number changes.
        floor = torch.finfo(dtype).eps * value.double().square().mean().sqrt().item()
        allowed = FACTOR * max(changes[name] ** 0.5, floor)
        found = distance(low[name], value)
        assert found <= allowed, (
            f'{name}: {found:.2g} from float32, where rounding moves it by '
            + (f'{changes[name] ** 0.5:.2g}')
        )
