"""setup.py: when it builds the operator, and what it says when it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def run_setup(*arguments, **environment):
    base = {k: v for k, v in os.environ.items() if k not in ('DDETR_BUILD_OPS', 'CXX')}
    return subprocess.run(
        [sys.executable, 'setup.py', *arguments],
        cwd=ROOT,
        env={**base, **environment},
        capture_output=True,
        text=True,
    )


def test_without_a_compiler_the_package_is_pure_python_and_says_so(tmp_path):
    done = run_setup('--version', PATH=str(tmp_path))
    assert done.returncode == 0
    assert 'installing WITHOUT the native operator: no C++ compiler was found' in done.stderr


def test_an_operator_that_must_be_built_fails_without_a_compiler(tmp_path):
    done = run_setup('--version', PATH=str(tmp_path), DDETR_BUILD_OPS='1')
    assert done.returncode != 0
    assert 'DDETR_BUILD_OPS=1, but the operator cannot be built: no C++ compiler' in done.stderr


def test_the_operator_can_be_left_out_in_silence(tmp_path):
    done = run_setup('--version', PATH=str(tmp_path), DDETR_BUILD_OPS='0')
    assert done.returncode == 0 and 'WITHOUT' not in done.stderr


def test_a_wrong_wish_is_refused():
    done = run_setup('--version', DDETR_BUILD_OPS='yes')
    assert done.returncode != 0
    assert "DDETR_BUILD_OPS must be 0, 1 or unset, got 'yes'" in done.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason='this torch has CUDA')
def test_cuda_is_refused_with_a_torch_that_has_none(tmp_path):
    done = run_setup('--version', FORCE_CUDA='1', CUDA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert 'FORCE_CUDA=1, but torch' in done.stderr and 'a build without CUDA' in done.stderr
