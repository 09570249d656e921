"""Measures the operator against its peers, alternating in one process.

    python tools/benchmark_op.py [--device cuda] [--quick] [--threads N] [--out results.json]

Shapes: encoder and decoder of an 800 x 1066 picture, and of eight small pictures. Peers are
grid_sample (which is mmcv's way on a CPU), and torch-ms-deform-attn where it is installed; ours
also with bfloat16 values. The fused operator is measured against softmax and location arithmetic in
PyTorch around ours. Every timed implementation is first compared with ours. Prints a table, then
JSON with times in milliseconds, ratios and the machine. With --device cuda, other shapes and peers
and finer times: see benchmark_op_cuda.py.
"""

import argparse
import functools
from pathlib import Path

import torch
import torch.nn.functional as nnf
from benchmarking import environment, measure, publish

from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_fused

LARGE = ((100, 134), (50, 67), (25, 34), (13, 17))
SMALL = ((20, 20), (10, 10), (5, 5), (3, 3))
# name: (batch, level sizes, queries; None for one per cell)
CASES = {
    'encoder': (1, LARGE, None),
    'decoder': (1, LARGE, 300),
    'small encoder, batch 8': (8, SMALL, None),
    'small decoder, batch 8': (8, SMALL, 80),
}
HEADS, CHANNELS, POINTS = 8, 32, 4


def make_inputs(
    batch, sizes, queries, device, heads=HEADS, channels=CHANNELS, points=POINTS, seed=0
):
    """Arguments of `ms_deform_attn` and of `ms_deform_attn_fused`, as a trained model makes them.

    All in float32. Points lie around a reference, three cells of their level away (standard
    deviation); the reference of an encoder query is its own cell, that of a decoder query is
    anywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * width for height, width in sizes)
    if queries is None:
        centres = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w)
            for h, w in sizes
        ]
        # (B, S, 2) as (x, y)
        reference = torch.cat(centres).flip(-1)[None].expand(batch, -1, -1)
        queries = tokens
    else:
        reference = torch.rand(batch, queries, 2, generator=generator)
    lead = (batch, queries, heads, len(sizes), points)
    cells = torch.tensor([(width, height) for height, width in sizes])
    offsets = torch.randn(*lead, 2, generator=generator) * 3
    pixels = reference[:, :, None, None, None] * cells[:, None] - 0.5 + offsets
    # Away from whole pixels, where slopes jump and rounding decides which one is right.
    pixels = pixels.floor() + (pixels - pixels.floor()).clamp(0.01, 0.99)
    locations = (pixels + 0.5) / cells[:, None]
    logits = torch.randn(*lead[:3], len(sizes) * points, generator=generator)
    starts = [sum(h * w for h, w in sizes[:level]) for level in range(len(sizes))]
    values = [
        torch.randn(batch, tokens, heads, channels, generator=generator),
        torch.tensor(sizes),
        torch.tensor(starts),
    ]
    reference = reference[:, :, None].expand(-1, -1, len(sizes), -1).contiguous()
    offsets = (locations - reference[:, :, None, :, None]) * cells[:, None]
    plain = [*values, locations, logits.softmax(-1).view(lead)]
    fused = [*values, reference, offsets, logits.view(lead)]
    plain, fused = [x.to(device) for x in plain], [x.to(device) for x in fused]
    # What a model differentiates: the references of an encoder are constants, those of a decoder
    # that refines boxes are detached.
    for x in (plain[0], *plain[3:], fused[0], *fused[4:]):
        x.requires_grad_()
    return plain, fused


def grid_sample_attention(value, spatial_shapes, level_start_index, locations, weights):
    """The usual implementation without native code: one grid_sample per level, then a sum."""
    batch, _, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    sizes = spatial_shapes.tolist()
    maps = value.split([height * width for height, width in sizes], dim=1)
    grids = 2 * locations - 1
    sampled = []
    for level, (height, width) in enumerate(sizes):
        level_map = maps[level].flatten(2).transpose(1, 2)
        level_map = level_map.reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(nnf.grid_sample(level_map, grid, align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def around(operator):
    """An operator with the arguments of `ms_deform_attn_fused`, the arithmetic in PyTorch."""

    def unfused(value, spatial_shapes, level_start_index, reference, offsets, logits):
        locations = reference[:, :, None, :, None] + offsets / spatial_shapes.flip(-1)[:, None]
        weights = logits.flatten(-2).softmax(-1).view(logits.shape)
        return operator(value, spatial_shapes, level_start_index, locations, weights)

    return unfused


# Name -> function with the arguments of `ms_deform_attn_fused`; ours first.
FUSED = {
    'ours': ms_deform_attn_fused,
    'PyTorch around ours': around(ms_deform_attn),
    'PyTorch + grid_sample': around(grid_sample_attention),
}


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


def main():
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--threads', type=int, help='CPU threads; default: torch decides')
    parser.add_argument('--rounds', type=int, default=15, help='timed calls per implementation')
    parser.add_argument('--quick', action='store_true', help='small shapes, three rounds')
    parser.add_argument('--out', type=Path, help='also write the JSON to this file')
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rounds = 3 if options.quick else max(options.rounds, 2)
    if options.device == 'cuda':
        import benchmark_op_cuda

        numbers = benchmark_op_cuda.run(options.quick, rounds)
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


if __name__ == '__main__':
    main()
