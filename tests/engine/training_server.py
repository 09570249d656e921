"""Starts trainings in forked processes, so that thirty of them cost the imports of one.

Its one argument is a config, which it trains once to be warm. Then it reads JSON lines. For each
``{"config": FILE, "work_dir": DIR, "resume": true, "result": FILE}`` it prints the id of a process
that trains as ``tools/train.py`` does and writes the final state to `result`; for
``{"wait": PID}`` its exit status and its seconds of CPU, or null if it has not ended in a minute
and was killed. With ``"die_at": N`` the process ends itself with SIGKILL just before the N-th time
that it opens, renames or removes a file of `work_dir`; with ``"die_in_write": N`` when half of the
N-th checkpoint is written; with ``"die_in": [STAGE, N]`` in the N-th call of that stage of hooks.
``"environment": {...}`` is for what torchrun tells a process, which then uses the launcher.
"""

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import VISUALIZERS

import ddetr_plugin  # noqa: F401
from ddetr_plugin.apis.config_reading import load_config
from ddetr_plugin.apis.launch import build_runner
from ddetr_plugin.engine.processes import leave_processes

PATIENCE = 6000  # looks, a hundredth of a second apart, until a process is said to hang


def kill_at(number):
    """A function whose N-th call kills this process."""
    left = number

    def count():
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def die_at_change(folder, number):
    """Die at the N-th change of a file of a folder."""
    count = kill_at(number)

    def audit(event, arguments):
        if event == 'open':
            path, mode, _ = arguments
            changes = isinstance(mode, str) and set(mode) & set('wax+')
        else:
            path, changes = (arguments or [None])[0], event in ('os.rename', 'os.remove')
        named = changes and isinstance(path, str | os.PathLike)
        if named and Path(folder) in Path(path).parents:
            count()

    sys.addaudithook(audit)


def die_in_write(number):
    """Die within the N-th write of a checkpoint."""
    count, put = kill_at(number), LocalBackend.put

    def torn_put(backend, content, path):
        Path(path).write_bytes(content[: len(content) // 2])
        count()
        put(backend, content, path)

    LocalBackend.put = torn_put


def die_in(stage, number):
    """A hook that dies in the N-th call of a stage."""
    count, hook = kill_at(number), Hook()
    setattr(hook, stage, lambda *arguments, **more: count())
    return hook


def train(request):
    os.environ.update(request.get('environment', {}))
    launcher = 'pytorch' if 'environment' in request else 'none'
    config = load_config(request['config'], work_dir=request['work_dir'], launcher=launcher)
    config.resume = request['resume']
    runner = build_runner(config)
    if request.get('die_at'):
        die_at_change(request['work_dir'], request['die_at'])
    if request.get('die_in_write'):
        die_in_write(request['die_in_write'])
    if request.get('die_in'):
        runner.register_hook(die_in(*request['die_in']), priority='LOWEST')
    runner.train()
    leave_processes()
    if not request.get('result'):
        return
    state = dict(model=runner.model.state_dict(), optimizer=runner.optim_wrapper.state_dict())
    state['best'] = runner.message_hub.get_info('best_score')
    state['averages'] = [
        hook.ema_model.state_dict() for hook in runner.hooks if isinstance(hook, EMAHook)
    ]
    torch.save(state, request['result'])


def wait(pid):
    """Exit status and CPU seconds of a process; None if it had to be killed."""
    # Not by the clock, which goes on where all of this is suspended.
    for _ in range(PATIENCE):
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main():
    torch.set_num_threads(1)
    # Nine tenths of the time would go into pretty configs, and into collecting what all share.
    sys.modules['mmengine.config.config'].FormatCode = lambda text, **style: (text, True)
    # What runs print goes to the errors, not among the answers.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    with TemporaryDirectory() as folder:
        train(dict(config=sys.argv[1], work_dir=folder, resume=False))
    # The runs to come must not find this one's loggers.
    for kind in (VISUALIZERS.get('mmdet.DetLocalVisualizer'), MessageHub, MMLogger):
        kind._instance_dict.clear()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if 'wait' in request:
            answer = wait(request['wait'])
        else:
            answer = os.fork()
            if answer == 0:
                status = 1
                try:
                    with open(f'{request["work_dir"]}.log', 'ab', buffering=0) as log:
                        os.dup2(log.fileno(), 1)
                        os.dup2(log.fileno(), 2)
                    train(request)
                    status = 0
                finally:
                    sys.stderr.flush()
                    if status:
                        sys.excepthook(*sys.exc_info())
                    os._exit(status)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
