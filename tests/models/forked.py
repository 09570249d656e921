"""Tools in several processes, as torchrun starts them, at the price of one start of Python.

    python forked.py TOOL PROCESSES ARGUMENT ...

Everything is imported before the processes part. If one fails, the others are not waited for.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# Processes that wait for each other in vain would do so for half an hour.
PATIENCE = 300  # seconds


def environment(*paths):
    """For a subprocess: one thread, no GPU, `paths` and the repository to import from."""
    paths = [*map(str, paths), str(REPO), os.environ.get('PYTHONPATH', '')]
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


def run_tool(tool, processes, arguments, *paths):
    """Runs tools/`tool`.py with --launcher pytorch in `processes` processes; see `run`."""
    here = [sys.executable, str(Path(__file__).resolve())]
    run([*here, tool, str(processes), *arguments, '--launcher', 'pytorch'], *paths)


def main(tool, processes, *arguments):
    import mmdet.datasets
    import mmdet.evaluation
    import mmdet.visualization  # noqa: F401

    import ddetr_plugin.engine
    import ddetr_plugin.models  # noqa: F401

    spec = importlib.util.spec_from_file_location(tool, REPO / 'tools' / f'{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(int(processes)):
        child = os.fork()
        if not child:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=processes,
                LOCAL_WORLD_SIZE=processes,
                MASTER_ADDR='127.0.0.1',
                MASTER_PORT=str(port),
            )
            status = 1
            try:
                module.main(list(arguments))
                status = 0
            except SystemExit as stop:
                # As the interpreter does: a tool has said why, and a traceback would say it again.
                status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(1)


if __name__ == '__main__':
    # As for a file that is imported: this folder is for tests.
    sys.path.remove(str(Path(__file__).resolve().parent))
    import ddetr_plugin  # noqa: F401  before mmdet

    main(*sys.argv[1:])
