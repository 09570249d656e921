"""The GPU's part of run.py: our operator against every peer that can be imported.

Peers: grid_sample; torch-ms-deform-attn; mmcv with its compiled operators; the operator that
Deformable DETR was published with (MultiScaleDeformableAttention); deformops; FlashDeformAttn of
DCNv4, which does the softmax, too. Those that are missing are named, with the way to install them
(peers.py). Forward and backward are timed apart, as CUDA graphs of several calls whose
inputs take turns, so that a call finds nothing of its own in the L2 cache and no time of the host
is measured; what cannot be captured is timed with events and marked `eager`. In 16 bits each
implementation gets what it takes: ours and torch-ms-deform-attn values of 16 bits and float32
coordinates, deformops float32 locations, the others all in 16 bits.

Beside each time: how often ours fits into it; the memory that must be read and written at least,
over the time, and that in percent of what copying memory reaches here (the speed of light for an
operator that reads every input once); the bytes gathered from caches over the time; and the error,
against float64, relative to the largest number of each result.
"""

import math
import statistics

import torch

from benchmarks.op.cases import LARGE, SMALL, make_inputs
from benchmarks.op.peers import find_peers
from benchmarks.timing import milliseconds
from ddetr_plugin.ops import ms_deform_attn_fused_reference, ms_deform_attn_reference

WIDE = ((100, 167), (50, 84), (25, 42), (13, 21))
# name: (batch, level sizes, queries; None for one per cell, (heads, channels, points))
USUAL = (8, 32, 4)
CASES = {
    'encoder 800 x 1333': (1, WIDE, None, USUAL),
    'encoder 800 x 1333, batch 2': (2, WIDE, None, USUAL),
    'encoder 800 x 1066': (1, LARGE, None, USUAL),
    'decoder, 300 queries': (1, WIDE, 300, USUAL),
    'decoder, 900 queries, batch 2': (2, WIDE, 900, USUAL),
    'Mask2Former 1024 x 1024': (1, ((128, 128), (64, 64), (32, 32)), None, USUAL),
    'RT-DETR 640 x 640': (1, ((80, 80), (40, 40), (20, 20)), 300, USUAL),
    'RF-DETR': (1, ((40, 40),), 300, (16, 16, 2)),
    'RF-DETR training, batch 4': (4, ((40, 40),), 3900, (16, 16, 2)),
}
QUICK = {'small': (2, SMALL, None, USUAL)}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def in_dtype(inputs, dtype, wide):
    """The same inputs in another dtype, but for those at the positions `wide`."""
    cast = [
        x.detach().to(dtype) if x.is_floating_point() and number not in wide else x.detach()
        for number, x in enumerate(inputs)
    ]
    return [x.requires_grad_(old.requires_grad) for x, old in zip(cast, inputs)]


def steps(function, inputs):
    """Two calls without arguments: the forward; the backward of an earlier forward."""
    wanted = [x for x in inputs if x.requires_grad]
    output = function(*inputs)
    grad_output = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)

    def forward():
        with torch.no_grad():
            return [function(*inputs)]

    def backward():
        return list(torch.autograd.grad(output, wanted, grad_output, retain_graph=True))

    return {'forward': forward, 'backward': backward}


def errors(results, exact):
    """Largest error of each result, relative to its largest number; then the largest of them.

    NaN where any result holds one: torch's max, unlike Python's, does not pass over it.
    """
    relative = [
        (a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30)
        for a, b in zip(results, exact, strict=True)
    ]
    return torch.stack(relative).max().item()


class Timed:
    """The same call on several inputs, as one CUDA graph where that is possible."""

    def __init__(self, calls, stream):
        """Args:
        calls: what to time, each on inputs of its own.
        stream: of CUDA, on which the calls were prepared; None on the CPU.
        """
        self.calls, self.stream, self.graph = calls, stream, None
        for call in calls:
            call()
        if stream is None:
            return
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                for call in calls:
                    call()
        except RuntimeError:
            torch.cuda.synchronize()
            return
        self.graph = graph

    def microseconds(self):
        """Of one call, from one run of all of them."""
        run = self.graph.replay if self.graph else self.run_all
        device = 'cpu' if self.stream is None else 'cuda'
        with torch.cuda.stream(self.stream):
            return milliseconds(run, device) * 1e3 / len(self.calls)

    def run_all(self):
        """Every call once."""
        for call in self.calls:
            call()


def compulsory_bytes(inputs, direction):
    """What a pass reads and writes at least, in bytes, and what it gathers from the caches."""
    value, points = inputs[0], inputs[-1]
    size = value.element_size()
    output = value.shape[0] * points.shape[1] * value.shape[2] * value.shape[3] * size
    tensors = [x for x in inputs if x.is_floating_point()]
    read = sum(x.numel() * x.element_size() for x in tensors) + output
    gathered = points.numel() * 4 * value.shape[3] * size
    if direction == 'forward':
        return read, gathered
    written = sum(x.numel() * x.element_size() for x in tensors if x.requires_grad)
    # Cells are read, and sums of float32 are added to their gradients.
    return read + written, gathered + gathered // size * 4


def copy_bandwidth(device):
    """Bytes per second that copying memory reads and writes."""
    source = torch.empty((1 << 30) if device == 'cuda' else (1 << 20), dtype=torch.uint8)
    source = source.to(device)
    target = torch.empty_like(source)
    stream = torch.cuda.Stream() if device == 'cuda' else None
    timed = Timed([lambda: target.copy_(source)], stream)
    return 2 * source.numel() / (min(timed.microseconds() for _ in range(10)) * 1e-6)


def measure_case(shape, dtype, device, rounds, copies, fused, peers):
    """Rows of one case: implementation, pass, times, ratios, rates and errors.

    Args:
        shape: batch, level sizes, queries, (heads, channels, points).
        dtype: of `value`.
        device: 'cuda', or 'cpu' to try the program itself.
        rounds: timed runs.
        copies: inputs that take turns.
        fused: the fused operator instead of the plain one.
        peers: name -> `peers.Peer` for that operator, ours first.

    Returns:
        What did not run, then what was timed; only the former where ours did not run.
    """
    batch, sizes, queries, (heads, channels, points) = shape
    made = [
        make_inputs(batch, sizes, queries, device, heads, channels, points, seed)[fused]
        for seed in range(copies)
    ]
    # Of what every implementation is to compute: from values as they are in `dtype`.
    rounded = in_dtype(made[0], dtype, range(1, len(made[0])))
    usual = ms_deform_attn_fused_reference if fused else ms_deform_attn_reference
    exact = {}
    stream = torch.cuda.Stream() if device == 'cuda' else None
    timed, rows = {}, []
    for name, peer in peers.items():
        pack = peer.pack or list
        reference = peer.reference or usual
        if reference not in exact:
            wide = pack(in_dtype(rounded, torch.float64, ()))
            exact[reference] = {way: step() for way, step in steps(reference, wide).items()}
        inputs = [in_dtype(x, dtype, peer.wide) for x in made]
        # grid_sample reads the sizes on the host; the compiled peers want them on the device.
        if 'grid_sample' in name:
            inputs = [[x[0], x[1].cpu(), x[2].cpu(), *x[3:]] for x in inputs]
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                prepared = [steps(peer.function, pack(x)) for x in inputs]
                for direction in ('forward', 'backward'):
                    calls = [step[direction] for step in prepared]
                    error = errors(calls[0](), exact[reference][direction])
                    timed[name, direction] = Timed(calls, stream), error, inputs[0]
        except (RuntimeError, TypeError, ValueError) as problem:
            lines = str(problem).splitlines() or ['']
            rows.append({'implementation': name, 'failed': f'does not run: {lines[0][:200]}'})
            if name == 'ours':
                return rows
    samples = {key: [] for key in timed}
    for number in range(rounds + 2):
        for key, (graph, _, _) in timed.items():
            microseconds = graph.microseconds()
            if number >= 2:  # two rounds of warming up
                samples[key].append(microseconds)
    for (name, direction), (graph, error, inputs) in timed.items():
        median = statistics.median(samples[name, direction])
        least, gathered = compulsory_bytes(inputs, direction)
        rows.append(
            {
                'implementation': name,
                'pass': direction,
                'eager': graph.graph is None,
                'median_us': round(median, 2),
                'min_us': round(min(samples[name, direction]), 2),
                'times_ours': round(median / statistics.median(samples['ours', direction]), 2),
                'gb_per_s': round(least / median / 1e3, 1),
                'gathered_gb_per_s': round(gathered / median / 1e3, 1),
                'error': float(f'{error:.1e}'),
            }
        )
    return rows


def run(quick, rounds, device='cuda'):
    """Measures everything and prints a table; returns what goes into the JSON.

    Raises:
        SystemExit: ours fails or is wrong, or a peer in float32 is wrong.
    """
    *peers, missing = find_peers()
    for name, reason in missing.items():
        print(f'without {name}: {reason}')
    copied = copy_bandwidth(device)
    print(f'copying memory: {copied / 1e9:.0f} GB/s')
    print(
        f'{"case":30} {"dtype":9} {"pass":9} {"implementation":25} {"median us":>10} '
        f'{"times ours":>10} {"GB/s":>7} {"% copy":>7} {"gather":>7} {"error":>8}'
    )
    results = []
    for case, shape in (QUICK if quick else CASES).items():
        for fused in (False, True):
            for dtype in DTYPES:
                copies = 2 if quick else 4
                for row in measure_case(shape, dtype, device, rounds, copies, fused, peers[fused]):
                    row = {
                        'case': case + (', fused' if fused else ''),
                        'dtype': str(dtype).removeprefix('torch.'),
                        **judged(row, dtype),
                    }
                    results.append(row)
                    print(line_of(row, copied), flush=True)
    return {'copy_gb_per_s': round(copied / 1e9, 1), 'missing': missing, 'results': results}


def judged(row, dtype):
    """A row of `measure_case`; of a result with NaN or infinity, only that it failed.

    Raises:
        SystemExit: the row is of ours and failed, or of ours or of a float32 result and wrong.
    """
    ours, error = row['implementation'] == 'ours', row.get('error', 0)
    limit = 1e-3 if dtype == torch.float32 else 2e-2
    wrong = not error < limit  # NaN is
    if (ours and (wrong or 'failed' in row)) or (wrong and dtype == torch.float32):
        raise SystemExit(f'{row["implementation"]} is wrong: {row}')
    if math.isfinite(error):
        return row
    kept = {key: row[key] for key in ('implementation', 'pass')}
    return {**kept, 'failed': f'its error is {error}'}


def line_of(row, copied):
    """One line of the table."""
    head = f'{row["case"]:30} {row["dtype"]:9} {row.get("pass", ""):9} {row["implementation"]:25}'
    if 'failed' in row:
        return f'{head} {row["failed"]}'
    percent = 100 * row['gb_per_s'] * 1e9 / copied
    return (
        f'{head} {row["median_us"]:10.1f} {row["times_ours"]:10.2f} {row["gb_per_s"]:7.0f} '
        f'{percent:7.1f} {row["gathered_gb_per_s"]:7.0f} {row["error"]:8.1e}'
        f'{" eager" if row["eager"] else ""}'
    )
