"""Measures the operator against its peers, alternating in one process.

    python -m benchmarks.op [--device cuda] [--quick] [--threads N] [--out results.json]

Shapes: encoder and decoder of an 800 x 1066 image, and of eight small images. Peers are
grid_sample (which is mmcv's way on a CPU), and torch-ms-deform-attn where it is installed; ours
also with bfloat16 values. The fused operator is measured against softmax and location arithmetic in
PyTorch around ours. Every timed implementation is first compared with ours. Prints a table, then
JSON with times in milliseconds, ratios and the machine. With --device cuda, other shapes and peers
and finer times: see benchmarks/op/cuda.py.
"""

import argparse
import functools
from pathlib import Path

import torch

from benchmarks.op.cases import CASES, FUSED, LARGE, grid_sample_attention, make_inputs
from benchmarks.record import environment, publish
from benchmarks.timing import measure
from ddetr_plugin.ops import ms_deform_attn


def implementations():
    """Name -> function with the arguments of `ms_deform_attn`; ours first."""
    found = {'ours': ms_deform_attn, 'grid_sample': grid_sample_attention}
    try:
        from torch_ms_deform_attn import ms_deform_attn as package

        found['torch-ms-deform-attn'] = package
    except ImportError:
        pass
    return found


def forward(function, inputs):
    """One call without gradients."""
    with torch.no_grad():
        return function(*inputs)


def forward_backward(function, inputs):
    """One call and the gradients of what wants them."""
    leaves = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    output = function(*leaves)
    wanted = [x for x in leaves if x.requires_grad]
    # Ones that are memory, as a following layer's gradient is, not an expanded scalar.
    return (output, *torch.autograd.grad(output, wanted, torch.ones_like(output)))


def largest_difference(ours, theirs):
    """Largest difference over outputs and gradients, relative to the largest number of each."""
    # torch's max, not Python's, which would pass over NaN.
    relative = [(a - b).abs().max() / b.abs().max().clamp(min=1e-30) for a, b in zip(ours, theirs)]
    return torch.stack([x.double() for x in relative]).max().item()


def compare(step, entries, rounds):
    """Checks that all entries agree with 'ours', then measures them.

    Args:
        step: `forward` or `forward_backward`.
        entries: name -> (function, inputs).
        rounds: timed calls of each.

    Raises:
        SystemExit: results differ by more than rounding.
    """
    expected = step(*entries['ours'])
    for name, (function, inputs) in entries.items():
        tolerance = 1e-3 if inputs[0].dtype == torch.float32 else 2e-2
        difference = largest_difference(step(function, inputs), expected)
        if not difference <= tolerance:
            raise SystemExit(f'{name} differs from ours by {difference:.1e}')
    calls = {name: functools.partial(step, *entry) for name, entry in entries.items()}
    return measure(calls, 'cpu', rounds, untimed=1)


def main(arguments=None):
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.op', description=__doc__.split('\n')[0]
    )
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--threads', type=int, help='CPU threads; default: torch decides')
    parser.add_argument('--rounds', type=int, default=15, help='timed calls per implementation')
    parser.add_argument('--quick', action='store_true', help='small shapes, three rounds')
    parser.add_argument('--out', type=Path, help='also write the JSON to this file')
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rounds = 3 if options.quick else max(options.rounds, 2)
    if options.device == 'cuda':
        from benchmarks.op import cuda

        numbers = cuda.run(options.quick, rounds)
        publish({'environment': environment('cuda'), **numbers}, options.out)
        return
    report = {'environment': environment('cpu'), 'results': []}
    print(f'{"case":24} {"pass":18} {"implementation":24} {"median ms":>10} {"times ours":>11}')
    for case, (batch, sizes, queries) in CASES.items():
        if options.quick and sizes is LARGE:
            continue
        plain, fused = make_inputs(batch, sizes, queries, 'cpu')
        entries = {name: (f, plain) for name, f in implementations().items()}
        entries['ours, bfloat16 values'] = (
            ms_deform_attn,
            [
                plain[0].detach().bfloat16().requires_grad_(),
                *plain[1:],
            ],
        )
        fused_entries = {name: (f, fused) for name, f in FUSED.items()}
        for operator, operands in (('', entries), (', fused', fused_entries)):
            for step in (forward_backward, forward):
                for name, numbers in compare(step, operands, rounds).items():
                    row = {
                        'case': case + operator,
                        'pass': step.__name__,
                        'implementation': name,
                        **numbers,
                    }
                    report['results'].append(row)
                    print(
                        f'{row["case"]:24} {step.__name__:18} {name:24} '
                        f'{numbers["median_ms"]:10.3f} {numbers["times_ours"]:11.2f}',
                        flush=True,
                    )
    publish(report, options.out)
