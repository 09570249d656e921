"""Is the operator right here? Small problems, compared with the definition in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddetr_plugin.ops.functional import ms_deform_attn, ms_deform_attn_fused
from ddetr_plugin.ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference

__all__ = ['ALLOWED', 'Check', 'self_checks']

# Largest error of a result over its largest number. float32: sums of a few hundred products, in
# another order. bfloat16: values, outputs and their gradients are rounded by up to 2^-8 of
# themselves; coordinates and sums are float32.
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SIZES = ((6, 9), (3, 5))
BATCH, HEADS, CHANNELS, POINTS = 2, 4, 32, 4
# Few queries and many run through different code, on a CPU and on a GPU.
QUERIES = (7, 2100)


class Check(NamedTuple):
    """One operator in one dtype on one device; errors are relative to the largest number."""

    device: str
    operator: str
    dtype: torch.dtype
    forward: float
    backward: float
    problem: str | None

    @property
    def right(self) -> bool:
        """Whether both errors are within `ALLOWED`; NaN is not."""
        allowed = ALLOWED[self.dtype]
        return self.problem is None and self.forward <= allowed and self.backward <= allowed


def self_checks(devices: list[str]) -> Iterator[Check]:
    """Both operators, float32 and bfloat16 values, outputs and gradients.

    Args:
        devices: where to run, such as 'cpu'.

    Yields:
        One `Check` per device, operator and dtype. A call that raises fails its check.
    """
    operators = (
        (ms_deform_attn, ms_deform_attn_reference, _plain_problem),
        (ms_deform_attn_fused, ms_deform_attn_fused_reference, _fused_problem),
    )
    for device in devices:
        for operator, reference, make in operators:
            for dtype in ALLOWED:
                forward = backward = 0.0
                problem = None
                try:
                    for queries in QUERIES:
                        errors = _errors(operator, reference, make(queries), dtype, device)
                        # torch's max, unlike Python's, does not pass over NaN.
                        forward, backward = torch.maximum(
                            torch.tensor((forward, backward)), errors
                        ).tolist()
                except RuntimeError as error:
                    problem = f'{type(error).__name__}: {error}'
                yield Check(device, operator.__name__, dtype, forward, backward, problem)


def _errors(operator, reference, arguments, dtype, device) -> Tensor:
    """(2,): the error of the output, and the largest one of the gradients."""
    value, *points = (x.float() for x in arguments)
    inputs = [value.to(device, dtype), *(x.to(device) for x in points)]
    generator = torch.Generator().manual_seed(1)
    shape = (value.shape[0], points[-1].shape[1], HEADS * CHANNELS)
    grad_output = torch.randn(shape, generator=generator).to(device, dtype)
    ours = _results(operator, inputs, grad_output)
    exact = _results(reference, [x.double() for x in inputs], grad_output.double())
    relative = torch.stack(
        [(a.double() - b).abs().max() / b.abs().max() for a, b in zip(ours, exact)]
    ).cpu()
    return torch.stack([relative[0], relative[1:].max()]).float()


def _results(function, inputs, grad_output) -> list[Tensor]:
    """Output and all gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(leaves[0], SIZES, None, *leaves[1:])
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def _plain_problem(queries: int) -> tuple[Tensor, ...]:
    """value, locations, weights in float64; a few of the points lie off the map."""
    generator = torch.Generator().manual_seed(0)
    lead = (BATCH, queries, HEADS, len(SIZES), POINTS)
    tokens = sum(height * width for height, width in SIZES)
    value = torch.randn(BATCH, tokens, HEADS, CHANNELS, generator=generator, dtype=torch.float64)
    cells = _cells()
    pixels = torch.rand(*lead, 2, generator=generator, dtype=torch.float64) * (cells + 2) - 1.5
    # Away from whole pixels, where slopes jump and rounding decides which one is right.
    pixels = pixels.floor() + (pixels - pixels.floor()).clamp(0.05, 0.95)
    weights = torch.randn(*lead, generator=generator, dtype=torch.float64)
    return value, (pixels + 0.5) / cells, weights


def _fused_problem(queries: int) -> tuple[Tensor, ...]:
    """value, reference points, offsets, logits of the same points."""
    value, locations, logits = _plain_problem(queries)
    generator = torch.Generator().manual_seed(2)
    reference = torch.rand(BATCH, queries, len(SIZES), 2, generator=generator, dtype=torch.float64)
    offsets = (locations - reference[:, :, None, :, None]) * _cells()
    return value, reference, offsets, logits


def _cells() -> Tensor:
    """(L, 1, 2): (W, H) of each level."""
    return torch.tensor(SIZES, dtype=torch.float64).flip(-1)[:, None]
