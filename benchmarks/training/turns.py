"""Both models, each in a process of its own, taking turns."""

from benchmarks.training.models import NAMES
from benchmarks.training.worker import Process

WARM_UP = 2


def time_in_turns(setup, options):
    """Times of steps or predictions.

    Args:
        setup: Setup.
        options: of the command line: device, inference, amp, rounds.

    Returns:
        dict: part -> 'mmdet', 'ours' and perhaps 'ours, bfloat16' -> list of milliseconds.
    """
    runs = {'mmdet': ('mmdet', False), 'ours': ('ours', False)}
    if options.amp:
        runs['ours, bfloat16'] = ('ours', True)
    times = {}
    workers = {name: Process(name, setup, options.device, options.inference) for name in NAMES}
    try:
        for worker in workers.values():
            worker.wait_until_ready()
        for number in range(options.rounds + WARM_UP):
            for run, (name, amp) in runs.items():
                parts = workers[name].times(amp)
                if number >= WARM_UP:
                    for part, taken in parts.items():
                        times.setdefault(part, {}).setdefault(run, []).append(taken)
    finally:
        for worker in workers.values():
            worker.close()
    return times
