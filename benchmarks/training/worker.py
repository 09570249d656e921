"""One model in a process of its own: a step or prediction per line of input.

    python -m benchmarks.training.worker REQUEST

REQUEST is a JSON object of the arguments of `Worker`, and `threads`. `Process` starts it. A line of
input says whether to use autocast, `true` or `false`; the answer is a JSON object of milliseconds.
"""

import json
import os
import subprocess
import sys
from functools import partial

import torch

from benchmarks.batches import random_batch
from benchmarks.processes import module_command, variables
from benchmarks.timing import milliseconds
from benchmarks.training.models import Setup, build, model_config
from benchmarks.training.step import Clock, autocast, make_optimizer, training_step, watch_loss
from ddetr_plugin.engine.host_memory import keep_freed_memory


class Worker:
    """Steps or predictions of one model.

    Args:
        name: of the model, 'ours' or 'mmdet'.
        setup: Setup.
        device: 'cpu' or 'cuda'.
        inference: predictions instead of training steps.
    """

    def __init__(self, name, setup, device, inference):
        (model,) = build(model_config(setup), [name]).values()
        self.device, self.model, self.inference = device, model.to(device), inference
        self.batch = random_batch(setup.batch, *setup.shape, device)
        self.clock = Clock(device)
        self.model.train(not inference)
        if not inference:
            watch_loss(self.model, self.clock)
            self.optimizer = make_optimizer(self.model, fused=name == 'ours')

    def times(self, amp):
        """Milliseconds of the parts of one step or prediction; `amp`: under bfloat16 autocast."""
        if self.inference:
            with torch.inference_mode(), autocast(self.device, amp):
                taken = milliseconds(partial(self.model.predict, *self.batch), self.device)
            return {'inference': taken}
        training_step(self.model, self.optimizer, *self.batch, self.clock, amp)
        between = self.clock.between
        return {
            'step': between('begin', 'end'),
            'forward': between('begin', 'loss'),
            'matching + loss': between('loss', 'backward'),
            'backward': between('backward', 'optimiser'),
            'optimiser': between('optimiser', 'end'),
        }


class Process:
    """A `Worker` in a process of its own, which starts at once; arguments are those of `Worker`."""

    def __init__(self, name, setup, device, inference):
        self.name = name
        request = dict(name=name, setup=setup._asdict(), device=device, inference=inference)
        request['threads'] = torch.get_num_threads()
        self.process = subprocess.Popen(
            module_command(__name__, json.dumps(request)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Threads of the process that waits for its turn must not spin on the other's cores.
            env=variables(GOMP_SPINCOUNT='2000'),
        )

    def wait_until_ready(self):
        """Waits for the model to be built.

        Raises:
            SystemExit: it could not be.
        """
        if self.process.stdout.readline().strip() != 'ready':
            raise SystemExit(f'the process with the model of {self.name} failed; see above')

    def times(self, amp):
        """`Worker.times`."""
        print(json.dumps(amp), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self):
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def main(request):
    """The process: answers every line of input."""
    from mmdet.utils import register_all_modules

    # Whatever else prints goes to stderr.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    torch.set_num_threads(request.pop('threads'))
    register_all_modules()
    if request['name'] == 'ours' and request['device'] == 'cpu':
        keep_freed_memory()  # as tools/train.py does; mmdet's does not
    worker = Worker(**dict(request, setup=Setup(**request['setup'])))
    print('ready', file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.times(json.loads(line))), file=answers, flush=True)


if __name__ == '__main__':
    main(json.loads(sys.argv[1]))
