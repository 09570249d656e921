"""What the tests of benchmarks share."""

import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def forked_commands(monkeypatch):
    """Modules and tools run in forked processes, which need not import mmdet again."""
    from forked import run_forked

    from benchmarks import processes
    from benchmarks.table import accuracy

    def run(command, **_):
        # See `module_command` and `tool_command`.
        _, _, _, program, *arguments = command
        name = arguments.pop(0) if program == '-m' else Path(program).stem
        return subprocess.CompletedProcess(command, *run_forked(name, arguments))

    for module in (processes, accuracy):
        monkeypatch.setattr(module, 'run', run)
