"""Commands of processes that measure, train or test by themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def module_command(name, *arguments):
    """The command that runs a module of this package, such as 'benchmarks.op', in a new Python."""
    return [sys.executable, '-W', 'ignore', '-m', name, *map(str, arguments)]


def tool(name):
    """Path of tools/`name`.py."""
    return ROOT / 'tools' / f'{name}.py'


def tool_command(name, *arguments):
    """The command that runs tools/`name`.py in a new Python."""
    return [sys.executable, '-W', 'ignore', str(tool(name)), *map(str, arguments)]


def variables(**more):
    """The environment of `module_command`: modules of this checkout are found in any folder.

    Args:
        more: those that count only where they are not set already.
    """
    paths = [str(ROOT), os.environ.get('PYTHONPATH')]
    return {**more, **os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))}


def run(command, **more):
    """Runs a command and waits for its end.

    Args:
        command: list of str.
        more: variables of its environment, where they are not set already.

    Returns:
        subprocess.CompletedProcess, with what it wrote as text.
    """
    return subprocess.run(command, capture_output=True, text=True, env=variables(**more))


def run_apart(module, *arguments, **more):
    """What a module of this package prints last when it runs in a new Python.

    Args:
        module: its name.
        arguments: of its command line.
        more: as in `run`.

    Returns:
        What the last line of its output is as JSON.

    Raises:
        subprocess.CalledProcessError: it failed; `stderr` has what it wrote.
    """
    done = run(module_command(module, *arguments), **more)
    done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def last_words(done):
    """The last line that a failed process wrote to stderr.

    Args:
        done: subprocess.CompletedProcess or CalledProcessError with `stderr` as text.
    """
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f'exit status {done.returncode}'
