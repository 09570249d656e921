"""The yardstick of 16-bit results lets roundings pass, and nothing much larger."""

import pytest
import torch
from rounding import assert_as_near_as_rounding_allows
from torch import nn


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_rounded_layers_pass_and_a_fault_of_a_few_steps_does_not(dtype):
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 8))
    x = torch.randn(50, 32)
    exact = dict(output=model(x).detach())
    # The arithmetic of 16 bits without its instructions: what they round is rounded in float32.
    rounded = x
    for layer in model:
        rounded = layer(rounded).to(dtype).float()

    def check(low):
        assert_as_near_as_rounding_allows(
            dict(output=low), exact, lambda: dict(output=model(x)), model, dtype
        )

    check(rounded.detach())
    for fault in (1.0 + 10 * torch.finfo(dtype).eps, 0.5):
        with pytest.raises(AssertionError, match='output: .* from float32, where rounding moves'):
            check(rounded.detach() * fault)
    with pytest.raises(AssertionError):
        check(rounded.detach() * torch.nan)
