"""`make test-cuda` on a machine with a GPU and little else: what it needs, what it runs."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forked import run_python

ROOT = Path(__file__).resolve().parents[2]
NEEDS = ROOT / 'requirements' / 'test_cuda.txt'
# Runs pytest where no package can be imported but those that its first argument does not name.
PYTEST_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(',')))
import pytest
raise SystemExit(pytest.main(sys.argv[2:]))
"""
STUB = """#!/bin/sh
echo "$FORCE_CUDA $TORCH_CUDA_ARCH_LIST $@" >> "$LOG"
[ "$1" != -c ] || echo "9.0;10.0"
"""


def distribution(requirement):
    """The normalised name of the package that a line of requirements asks for."""
    return re.sub('[-_.]+', '-', re.match(r'[\w.-]+', requirement)[0]).lower()


def needed():
    """What requirements/test_cuda.txt names, with all that those packages need themselves."""
    lines = NEEDS.read_text(encoding='utf-8').splitlines()
    wanted = [distribution(line) for line in lines if line and not line.startswith('#')]
    found = set()
    while wanted:
        name = wanted.pop()
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        if name not in found:
            found.add(name)
            wanted += [distribution(line) for line in requirements if 'extra ==' not in line]
    return found


def collected(missing):
    """The CUDA tests that pytest finds where the modules named in `missing` are not installed."""
    done = run_python(
        PYTEST_WITHOUT,
        ','.join(missing),
        *('-m', 'cuda', '--collect-only', '-q', '-p', 'no:cacheprovider', 'tests/ops'),
        # Plugins that pytest would load belong to packages that are hidden here.
        PYTEST_DISABLE_PLUGIN_AUTOLOAD='1',
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {line for line in done.stdout.splitlines() if '::' in line}


def test_all_cuda_tests_are_collected_where_nothing_but_what_they_need_is_installed():
    packages = importlib.metadata.packages_distributions()
    allowed = needed() | {'ddetr-plugin'}
    missing = {
        module
        for module, owners in packages.items()
        if not allowed.intersection(map(distribution, owners))
    }
    missing |= {'mmcv', 'mmdet', 'mmengine', 'scipy', 'hypothesis', 'pycocotools', 'transformers'}
    everywhere = collected(['cv2'])
    # These files are about mmcv itself, and about what hypothesis thinks up.
    needing_more = ('test_replace_mmcv_op', 'test_op_fuzz')
    expected = {name for name in everywhere if not any(file in name for file in needing_more)}
    assert len(expected) > 500
    assert collected(sorted(missing | {'cv2'})) == expected


def make_test_cuda(python, **variables):
    """Runs it with another program in the place of Python."""
    if shutil.which('make') is None:
        pytest.skip('make is not installed')
    # Of a `make` that runs these tests.
    outside = {k: v for k, v in os.environ.items() if not k.startswith(('MAKE', 'MFLAGS'))}
    return subprocess.run(
        ['make', 'test-cuda', f'PYTHON={python}', 'ARGS=-x'],
        cwd=ROOT,
        env={**outside, **variables},
        capture_output=True,
        text=True,
    )


def test_the_command_builds_in_place_with_the_python_at_hand_and_installs_nothing(tmp_path):
    python, log = tmp_path / 'python3', tmp_path / 'log'
    python.write_text(STUB)
    python.chmod(0o755)
    done = make_test_cuda(python, LOG=str(log))
    assert done.returncode == 0, done.stderr
    check, build, test = log.read_text().splitlines()
    assert check.endswith('torch numpy pytest setuptools')
    assert build == '1 9.0;10.0 setup.py -q build_ext --inplace --force'
    assert test.strip().endswith('-m pytest -q --tb=short -m cuda tests/ops -x')


def test_the_command_says_what_its_python_lacks(tmp_path):
    python = tmp_path / 'python3'
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    done = make_test_cuda(python)
    assert done.returncode != 0
    assert 'lacks torch, numpy, pytest' in done.stderr
    assert 'requirements/test_cuda.txt' in done.stderr
