"""setup.py: when it builds the operator, and what it says when it does not."""

import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from forked import run_python

ROOT = Path(__file__).resolve().parents[2]


SETUP = """
import runpy, sys
sys.argv[0] = 'setup.py'
runpy.run_path('setup.py', run_name='__main__')
"""


def run_setup(*arguments, **environment):
    return run_python(SETUP, *arguments, **{'DDETR_BUILD_OPS': '', 'CXX': '', **environment})


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


def run_setup_with_a_gpu(tmp_path, torch_cuda, toolkit, **environment):
    """setup.py on a machine with a GPU, a torch for one CUDA and a toolkit of another."""
    nvcc = tmp_path / 'bin' / 'nvcc'
    nvcc.parent.mkdir()
    nvcc.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release {toolkit}, V{toolkit}.1"\n')
    nvcc.chmod(0o755)
    code = f"""
import torch, torch.utils.cpp_extension as extension
torch.version.cuda, torch.cuda.is_available = {torch_cuda!r}, lambda: True
extension.CUDA_HOME = {str(tmp_path)!r}
{SETUP}"""
    return run_python(code, '--version', **{'TORCH_CUDA_ARCH_LIST': '9.0', **environment})


def test_a_toolkit_of_another_cuda_than_torchs_builds_for_the_cpu_and_says_so(tmp_path):
    done = run_setup_with_a_gpu(tmp_path, '13.0', '12.4')
    assert done.returncode == 0, done.stderr
    assert 'building for the CPU alone: torch' in done.stderr
    assert 'made with CUDA 13.0' in done.stderr and 'is 12.4' in done.stderr


def test_a_toolkit_of_another_cuda_is_an_error_where_cuda_must_be_built(tmp_path):
    done = run_setup_with_a_gpu(tmp_path, '13.0', '12.4', FORCE_CUDA='1')
    assert done.returncode != 0
    assert 'FORCE_CUDA=1, but torch' in done.stderr


def test_a_toolkit_of_the_same_cuda_is_used(tmp_path):
    done = run_setup_with_a_gpu(tmp_path, '13.0', '13.1')
    assert done.returncode == 0, done.stderr
    assert 'CPU alone' not in done.stderr


@pytest.mark.parametrize('has_headers', [True, False])
def test_a_script_in_the_place_of_nvcc_does_not_hide_the_toolkit(
    has_headers, tmp_path, monkeypatch
):
    toolkit, script = tmp_path / 'toolkit', tmp_path / 'bin' / 'nvcc'
    for file in (script, toolkit / 'include' / 'cuda_runtime_api.h'):
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
    if has_headers:
        header = tmp_path / 'include' / 'cuda_runtime_api.h'
        header.parent.mkdir()
        header.touch()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', ['setup.py', '--version'])
    monkeypatch.setattr(os, 'environ', {'PATH': str(script.parent), 'DDETR_BUILD_OPS': '0'})
    runpy.run_path('setup.py')['find_toolkit'](toolkit)
    assert os.environ.get('CUDA_HOME') == (None if has_headers else str(toolkit))
