"""Commands of processes that measure, train or test by themselves."""

import os
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


def last_words(done):
    """The last line that a failed process wrote to stderr.

    Args:
        done: subprocess.CompletedProcess with `stderr` as text.
    """
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f'exit status {done.returncode}'
