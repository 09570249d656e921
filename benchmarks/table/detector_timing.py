"""Latency, training step and peak memory of one config, in a process of its own.

    python -m benchmarks.table.detector_timing CONFIG SETUP

prints measurements as JSON; `measure_apart` starts it. SETUP is a JSON object of the arguments
of `measure_detector`. Pictures are random and on the device already: neither loading nor
normalisation is timed. Weights are initial ones, of which only post-processing's time depends.
"""

import contextlib
import json
import logging
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.config_types import has_type
from ddetr_plugin.engine.host_memory import keep_freed_memory
from ddetr_plugin.registry import MODELS

# isort: split
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from benchmarks.batches import random_batch
from benchmarks.process_memory import forget_peak, status_kib
from benchmarks.processes import last_words, run_apart
from benchmarks.timing import milliseconds

__all__ = ['PARTS', 'PRECISIONS', 'build_model', 'measure_apart', 'measure_detector']

PRECISIONS = ('float32', 'bfloat16')  # the second by autocast
PARTS = ('inference', 'training')
WARM_UP = 1


def without_pretrained(value):
    """A copy of a config whose parts are initialised without files."""
    if isinstance(value, dict):
        return {
            key: without_pretrained(inner)
            for key, inner in value.items()
            if not (key == 'init_cfg' and isinstance(inner, dict))
            or not has_type(inner, 'Pretrained')
        }
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_pretrained, value))
    return value


def build_model(config):
    """The detector of a config on the CPU, initialised as for training, but without files.

    Sparse R-CNN's proposals are no boxes before they are initialised.

    Raises:
        Whatever its parts raise, such as KeyError for a type that is not registered.
    """
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmdet')):
        model = MODELS.build(ConfigDict(without_pretrained(config.model.to_dict())))
    # It logs every parameter.
    logging.disable(logging.WARNING)
    model.init_weights()
    logging.disable(logging.NOTSET)
    return model


def number_of_classes(value):
    """The first `num_classes` in a nested config; None if there is none."""
    if isinstance(value, dict):
        if 'num_classes' in value:
            return value['num_classes']
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return next((n for n in map(number_of_classes, value) if n is not None), None)
    return None


class PeakMemory:
    """The most memory in use since `begin`: tensors on a GPU, else the process beyond `floor`."""

    def __init__(self, device):
        self.device = device
        self.floor = status_kib('VmRSS')

    def begin(self):
        if self.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        elif self.floor is not None:
            forget_peak()

    def mebibytes(self):
        """Peak in MiB, weights included; None where the system does not tell."""
        if self.device == 'cuda':
            return round(torch.cuda.max_memory_allocated() / 2**20)
        peak = status_kib('VmHWM')
        return None if peak is None else round((peak - self.floor) / 2**10)


def make_call(part, model, config, inputs, samples):
    """The function to time: a prediction, or a training step with the config's optimiser."""
    if part == 'inference':
        model.eval()
        return partial(model.predict, inputs, samples)
    model.train()
    logging.disable(logging.WARNING)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    logging.disable(logging.NOTSET)

    def step(autocast):
        with autocast():
            total, _ = model.parse_losses(model.loss(inputs, samples))
        total.backward()
        wrapper.step()
        wrapper.zero_grad()

    return step


def measure_detector(config, device, size, parts, batches, train_batch, precisions, rounds):
    """A list of measurements.

    Args:
        config: Config of a detector.
        device: 'cpu' or 'cuda'.
        size: (height, width) of the pictures.
        parts: of PARTS.
        batches: pictures per prediction, each measured.
        train_batch: pictures per training step.
        precisions: of PRECISIONS.
        rounds: timed calls of each, after one that is not.

    Returns:
        list of dicts: part, batch, precision, median_ms, min_ms, peak_MiB; or error.
    """
    if device == 'cpu':
        keep_freed_memory()
    memory = PeakMemory(device)
    with DefaultScope.overwrite_default_scope(config.get('default_scope', 'mmdet')):
        model = build_model(config).to(device)
        classes = number_of_classes(config.model) or 80
        results = []
        for part in parts:
            for batch in batches if part == 'inference' else [train_batch]:
                inputs, samples = random_batch(batch, *size, device, classes)
                call = make_call(part, model, config, inputs, samples)
                for precision in precisions:
                    row = {'part': part, 'batch': batch, 'precision': precision}
                    memory.begin()
                    try:
                        row.update(_time(call, part, precision, device, rounds))
                        row['peak_MiB'] = memory.mebibytes()
                    except (RuntimeError, NotImplementedError, ImportError) as error:
                        row['error'] = str(error).splitlines()[0]
                    results.append(row)
    return results


def _time(call, part, precision, device, rounds):
    """Times of a call of `make_call`."""

    def autocast():
        if precision == 'float32':
            return contextlib.nullcontext()
        return torch.autocast(device, torch.bfloat16)

    def predict():
        with torch.inference_mode(), autocast():
            call()

    timed = predict if part == 'inference' else partial(call, autocast)
    taken = [milliseconds(timed, device) for _ in range(WARM_UP + rounds)][WARM_UP:]
    return {'median_ms': round(statistics.median(taken), 2), 'min_ms': round(min(taken), 2)}


def measure_apart(config_file, setup):
    """`measure_detector` in a process of its own: memory is counted from nothing.

    Args:
        config_file: Path.
        setup: the other arguments, as a dict.

    Raises:
        RuntimeError: the process failed; the message is the last line that it printed.
    """
    try:
        # Waiting threads sleep soon instead of spinning on another process's cores.
        return run_apart(__name__, config_file, json.dumps(setup), GOMP_SPINCOUNT='2000')
    except subprocess.CalledProcessError as error:
        message = f'{Path(config_file).name} could not be timed: {last_words(error)}'
        raise RuntimeError(message) from error


def main(arguments):
    config_file, setup = arguments
    setup = json.loads(setup)
    threads = setup.pop('threads', None)
    if threads:
        torch.set_num_threads(threads)
    print(json.dumps(measure_detector(Config.fromfile(config_file), **setup)))


if __name__ == '__main__':
    main(sys.argv[1:])
