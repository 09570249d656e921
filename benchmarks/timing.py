"""Times of calls that take turns, and what is said of them."""

import statistics
import time

import torch


def milliseconds(call, device):
    """Time of one call."""
    if device == 'cuda':
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def spread(values):
    """Median and quartiles of milliseconds; of a single one, that one."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {
        'median_ms': round(statistics.median(values), 4),
        'quartiles_ms': [round(low, 4), round(high, 4)],
    }


def measure(calls, device, rounds, warm_up=2, untimed=0):
    """Medians and quartiles of each call; they take turns. Ratios are to the one named 'ours'.

    Args:
        calls: name -> function without arguments.
        device: 'cpu' or 'cuda'.
        rounds: how often each is timed.
        warm_up: rounds before these.
        untimed: in its turn, a call first runs so often untimed. A short one then finds in the
            caches what it left there itself, as it would find what the layer before it left, and
            not what a peer did.
    """
    times = {name: [] for name in calls}
    for number in range(rounds + warm_up):
        for name, call in calls.items():
            for _ in range(untimed):
                call()
            taken = milliseconds(call, device)
            if number >= warm_up:
                times[name].append(taken)
    result = {}
    for name, values in times.items():
        result[name] = {**spread(values), 'min_ms': round(min(values), 4)}
    for name in calls:
        ratio = result[name]['median_ms'] / result['ours']['median_ms']
        result[name]['times_ours'] = round(ratio, 2)
    return result
