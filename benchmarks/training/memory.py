"""Peak memory of training steps, in a process of its own.

    python -m benchmarks.training.memory REQUEST

prints MiB; REQUEST is a JSON object of the arguments of `measure`, and `threads`. `peak_memory`
starts it.
"""

import ctypes
import gc
import json
import subprocess
import sys

import torch

from benchmarks.batches import random_batch
from benchmarks.process_memory import forget_peak, status_kib
from benchmarks.processes import run_apart
from benchmarks.training.models import Setup, build, model_config
from benchmarks.training.step import Clock, make_optimizer, training_step


def peak_memory(name, setup, device, checkpointing=False):
    """`measure` in a process of its own.

    Raises:
        SystemExit: it failed; the message is the end of what it wrote.
    """
    request = dict(name=name, setup=setup._asdict(), device=device, checkpointing=checkpointing)
    request['threads'] = torch.get_num_threads()
    try:
        return run_apart(__name__, json.dumps(request))
    except subprocess.CalledProcessError as error:
        raise SystemExit(f'measuring memory failed:\n{error.stderr[-2000:]}') from error


def measure(name, setup, device, checkpointing):
    """MiB that two steps need at their peak, on a CPU beyond the built model.

    Args:
        name: of the model, 'ours' or 'mmdet'.
        setup: Setup.
        device: 'cpu' or 'cuda'.
        checkpointing: of the activations of encoder and decoder.

    Raises:
        SystemExit: the system does not tell.
    """
    config = model_config(setup)
    if checkpointing:
        config.encoder.layer.with_cp = config.decoder.layer.with_cp = True
    (model,) = build(config, [name]).values()
    model.to(device).train()
    inputs, samples = random_batch(setup.batch, *setup.shape, device)
    optimizer = make_optimizer(model, fused=name == 'ours')
    before = resident_kib() if device == 'cpu' else 0
    for _ in range(2):
        training_step(model, optimizer, inputs, samples, Clock(device), False)
    if device == 'cuda':
        return torch.cuda.max_memory_allocated() / 2**20
    return (status_kib('VmHWM') - before) / 2**10


def resident_kib():
    """KiB in memory now, without what building the models has left; its peak is forgotten."""
    if status_kib('VmRSS') is None:
        raise SystemExit('peak memory on a CPU is measured on Linux only')
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    forget_peak()
    return status_kib('VmRSS')


def main(request):
    """The process."""
    from mmdet.utils import register_all_modules

    torch.set_num_threads(request.pop('threads'))
    register_all_modules()
    print(measure(**dict(request, setup=Setup(**request['setup']))))


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
