"""One training step of either model, and the time of its parts."""

import contextlib
import logging
import time

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from benchmarks.processes import ROOT

SCHEDULE = ROOT / 'configs' / '_base_' / 'schedules' / 'schedule_50e.py'


class Clock:
    """Takes the time of the parts of a step, by what the models call anyway."""

    def __init__(self, device):
        self.device = device
        self.marks = {}

    def mark(self, name):
        """Notes now under `name`."""
        if self.device == 'cuda':
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks[name] = event
        else:
            self.marks[name] = time.perf_counter()

    def between(self, first, second):
        """Milliseconds from one mark to another."""
        begin, end = self.marks[first], self.marks[second]
        if self.device == 'cuda':
            end.synchronize()
            return begin.elapsed_time(end)
        return (end - begin) * 1e3


def watch_loss(model, clock):
    """Lets `clock` note when the forward pass ends and the losses begin."""
    owner, name = (
        (model.criterion, 'forward')
        if hasattr(model, 'criterion')
        else (model.bbox_head, 'loss_by_feat')
    )
    original = getattr(owner, name)

    def watched(*args, **kwargs):
        clock.mark('loss')
        return original(*args, **kwargs)

    setattr(owner, name, watched)


def make_optimizer(model, fused):
    """The project's own optimiser: AdamW in the paper's groups, and clipping."""
    config = Config.fromfile(SCHEDULE).optim_wrapper
    if not fused:  # as mmdet's config has it
        config.optimizer.pop('fused', None)
        config.pop('constructor', None)
    logging.disable(logging.WARNING)
    wrapper = build_optim_wrapper(model, config)
    logging.disable(logging.NOTSET)
    return wrapper


def autocast(device, amp):
    """bfloat16 autocast, or nothing."""
    return torch.autocast(device, torch.bfloat16) if amp else contextlib.nullcontext()


def training_step(model, wrapper, inputs, samples, clock, amp):
    """One step; `clock` gets its marks."""
    clock.mark('begin')
    with autocast(inputs.device.type, amp):
        total, _ = model.parse_losses(model.loss(inputs, samples))
    clock.mark('backward')
    total.backward()
    clock.mark('optimiser')
    wrapper.step()
    wrapper.zero_grad()
    clock.mark('end')
