"""Programs in forked processes, one or several as torchrun starts them, at the price of one Python.

As a program it imports much once, all that a tool needs or with ``torch`` as its argument no more
than torch, then reads JSON lines. For each ``{"tool": NAME, "arguments": [...], "environments":
[{...}, ...], "paths": [...], "folder": DIR}`` it forks a process per environment that runs
tools/NAME.py, or the module NAME where there is no such file, or with ``"code"`` in the place of
``"tool"`` the text of a program. It reads DIR/in and writes to DIR/out and DIR/err; the answer is
DIR and the exit status, the first that is not 0. If one fails, the others are not waited for.

Two things are not as in a Python of their own: what was imported is there already, and nothing
runs at exit. `run` starts one.
"""

import functools
import gc
import importlib.util
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

REPO = Path(__file__).resolve().parents[2]
# Of the package in use: that of the repository, or one that was built elsewhere.
PACKAGES = Path(importlib.util.find_spec('ddetr_plugin').origin).parents[1]
# Processes that wait for each other in vain would do so for half an hour.
PATIENCE = 300  # seconds


def environment(*paths):
    """For a subprocess: one thread, no GPU, `paths` and this package to import from."""
    paths = [*map(str, paths), str(PACKAGES), os.environ.get('PYTHONPATH', '')]
    return {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '-1',
    }


def run(command, *paths):
    """Runs a command in the repository; an AssertionError has what it wrote if it failed."""
    done = subprocess.run(
        command,
        cwd=REPO,
        env=environment(*paths),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-30000:]


class Done(NamedTuple):
    """What a program has left."""

    returncode: int
    stdout: str
    stderr: str


def ask(imported, stdin='', **request):
    """Has the program of this file, with all or only torch imported, run something; Done."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, 'in').write_text(stdin)
        program = server(imported)
        print(json.dumps(dict(request, folder=folder)), file=program.stdin, flush=True)
        # A request may have been interrupted before its answer was read.
        for line in program.stdout:
            answered, status = json.loads(line)
            if answered == folder:
                break
        else:
            server.cache_clear()
            raise RuntimeError(f'{__file__} ended with status {program.wait()}')
        return Done(status, *((Path(folder) / name).read_text() for name in ('out', 'err')))


def run_forked(tool, arguments, environments=({},), paths=(), stdin=''):
    """Runs a tool, or a module such as 'benchmarks.table', in a process per environment.

    Returns:
        Done, of all of them.
    """
    return ask(
        'all',
        stdin,
        tool=tool,
        arguments=[*map(str, arguments)],
        environments=[{**environment(), **own} for own in environments],
        paths=[*map(str, paths)],
    )


def run_python(code, *arguments, paths=(), **own):
    """As ``python -c CODE ARGUMENTS`` in the repository, where only torch has been imported.

    Args:
        code: the text of a program.
        arguments: its arguments.
        paths: where it looks first for what it imports.
        own: variables of its environment, besides those of this process.
    """
    return ask(
        'torch',
        code=code,
        arguments=[*map(str, arguments)],
        environments=[{**environment(*paths), **own}],
        paths=[*map(str, paths)],
    )


def run_tool(tool, processes, arguments, *paths):
    """Runs a tool in several processes, or in one; see `run`."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    common = dict(
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    environments = [dict(common, RANK=str(i), LOCAL_RANK=str(i)) for i in range(processes)]
    if processes == 1:
        done = run_forked(tool, arguments, paths=paths)
    else:
        done = run_forked(tool, [*arguments, '--launcher', 'pytorch'], environments, paths)
    assert done.returncode == 0, done.stderr[-30000:]


@functools.cache
def server(imported):
    """The program of this file, which ends with the process that started it."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), imported],
        cwd=REPO,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def start(request, environment):
    """A forked process that runs what is asked for; its id."""
    if child := os.fork():
        return child
    status = 1
    try:
        os.dup2(os.open(os.path.join(request['folder'], 'in'), os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0, closefd=False)  # without what this program has read ahead
        # At the end of the file, whatever the others have written.
        for name, descriptor in (('out', 1), ('err', 2)):
            path = os.path.join(request['folder'], name)
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)
        os.environ.clear()
        os.environ.update(environment)
        # Else all would draw what the first one draws.
        random.seed()
        np.random.seed()
        torch.seed()
        execute(request)
        status = 0
    except SystemExit as stop:
        # As the interpreter does: a tool has said why, and a traceback would say it again.
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def execute(request):
    """Runs what is asked for as a Python of its own would."""
    arguments = request['arguments']
    sys.path[:0] = request['paths']
    if 'code' in request:
        sys.argv = ['-c', *arguments]
        exec(compile(request['code'], '<string>', 'exec'), {'__name__': '__main__'})
        return
    name = request['tool']
    path = REPO / 'tools' / f'{name}.py'
    sys.argv = [str(path), *arguments]
    if path.exists():
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name='__main__')
    else:
        runpy.run_module(name, run_name='__main__', alter_sys=True)


def run_all(request):
    """The exit status of a request."""
    for name in ('out', 'err'):
        Path(request['folder'], name).touch()
    children = [start(request, environment) for environment in request['environments']]
    status = 0
    # Not by the clock, which goes on where all of this is suspended.
    for _ in range(100 * PATIENCE):
        child, ended = os.waitpid(-1, os.WNOHANG)
        if child:
            children.remove(child)
            status = os.waitstatus_to_exitcode(ended)
        if status or not children:
            break
        time.sleep(0.01)
    else:
        with open(Path(request['folder'], 'err'), 'a') as file:
            file.write(f'killed after {PATIENCE} seconds\n')
        status = 1
    for other in children:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    return status


def import_what_tools_need():
    import mmdet.datasets
    import mmdet.evaluation
    import mmdet.visualization  # noqa: F401
    import mmengine.config.config as config

    import ddetr_plugin.engine
    import ddetr_plugin.models  # noqa: F401

    # Else a short training spends much of its time on the looks of its config.
    config.FormatCode = lambda text, **style: (text, True)


def main(imported):
    # As for a file that is imported: this folder is for tests.
    sys.path.remove(str(Path(__file__).resolve().parent))
    # Collecting garbage would take a tenth of the time of the imports, and then much of what a
    # forked process does: mmengine asks for it with every data set.
    gc.disable()
    if imported == 'all':
        import ddetr_plugin  # noqa: F401  before mmdet

        import_what_tools_need()
    else:
        import torch._dynamo  # noqa: F401  most of what importing the operator takes
    gc.freeze()
    gc.enable()
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps([request['folder'], run_all(request)]), file=answers, flush=True)


if __name__ == '__main__':
    main(sys.argv[1])
