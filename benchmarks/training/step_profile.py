"""What a step of the model spends its time on, by torch's profiler."""

from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.batches import random_batch
from benchmarks.training.models import build, model_config
from benchmarks.training.step import Clock, make_optimizer, training_step

# Group -> what is in the names of its operators; the first that fits.
GROUPS = {
    'matrix products and convolutions': ('conv', 'mm', 'linear'),
    'our operator': ('ms_deform_attn',),
    'dropout': ('dropout',),
    'norms': ('norm',),
    'optimiser': ('adam',),
    'copies': ('copy', 'contiguous', 'clone', 'cat', 'fill', 'zero'),
}


def group_of(name):
    """The group of an operator's name."""
    name = name.lower()
    return next((g for g, parts in GROUPS.items() if any(p in name for p in parts)), 'other')


def time_shares(call, device, warm_up=2):
    """Shares of one call's time.

    Args:
        call: function without arguments.
        device: 'cpu' or 'cuda'; on the latter the time of kernels counts, not that of the host.
        warm_up: calls before, which do not count.

    Returns:
        dict: group -> share, 0..1, largest first. They add up to 1.
    """
    for _ in range(warm_up):
        call()
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == 'cuda')
    with profile(activities=kinds) as seen:
        call()
        if device == 'cuda':
            torch.cuda.synchronize()
    times = {}
    for event in seen.key_averages():
        taken = event.self_device_time_total if device == 'cuda' else event.self_cpu_time_total
        group = group_of(event.key)
        times[group] = times.get(group, 0) + taken
    total = sum(times.values())
    return {g: t / total for g, t in sorted(times.items(), key=lambda item: -item[1])}


def model_shares(setup, device, inference):
    """`time_shares` of a step of ours, or of a prediction.

    Args:
        setup: Setup.
        device: 'cpu' or 'cuda'.
        inference: a prediction instead of a training step.
    """
    model = build(model_config(setup), ['ours'])['ours'].to(device)
    batch = random_batch(setup.batch, *setup.shape, device)
    if not inference:
        optimizer = make_optimizer(model.train(), fused=True)
        return time_shares(
            partial(training_step, model, optimizer, *batch, Clock(device), False), device
        )
    with torch.inference_mode():
        return time_shares(partial(model.eval().predict, *batch), device)
