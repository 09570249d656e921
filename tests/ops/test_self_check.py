"""`python -m ddetr_plugin.ops`: what it says about the build, and that it notices what is wrong."""

import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_cases import needs_native

from ddetr_plugin.ops import __main__ as report
from ddetr_plugin.ops import self_check
from ddetr_plugin.ops.build_record import read_build_record
from ddetr_plugin.ops.functional import ms_deform_attn, ms_deform_attn_fused

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which(os.environ.get('CXX', 'c++'))
FACTS = {
    'compiler': 'c++ 12',
    'cxx_flags': '-O3 -DABC',
    'torch': '2.11.0',
    'torch_cuda': '13.0',
    'cxx11_abi': True,
    'stable_abi': '2.10',
    'python': '3.12.3',
    'platform': 'linux-x86_64',
    'nvcc': '13.0',
    'nvcc_flags': '-O3 -DXYZ',
    'architectures': '9.0',
}


@pytest.fixture(autouse=True)
def cpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


@pytest.fixture
def few_queries(monkeypatch):
    monkeypatch.setattr(self_check, 'QUERIES', (7,))


@needs_native
def test_a_right_operator_passes_in_both_forms_and_dtypes_on_every_device(capsys):
    assert report.main() == 0
    printed = capsys.readouterr().out
    assert f'dispatch level: {torch.ops.ddetr_plugin.cpu_capability()}' in printed
    assert 'torch >= 2.10' in printed
    rows = [line.split()[:4] for line in printed.splitlines() if ' (allowed: ' in line]
    assert rows == [
        ['cpu', operator, dtype, 'ok:']
        for operator in ('ms_deform_attn', 'ms_deform_attn_fused')
        for dtype in ('float32', 'bfloat16')
    ]


class WrongGradient(torch.autograd.Function):
    """Itself, with a gradient that is a tenth too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.1


def shifted(*arguments):
    return ms_deform_attn(*arguments) + 0.1


def with_nan(*arguments):
    output = ms_deform_attn(*arguments)
    return output + torch.tensor([float('nan'), *[0.0] * (output.shape[-1] - 1)]).to(output)


def with_wrong_gradient_of_the_logits(*arguments):
    return ms_deform_attn_fused(*arguments[:-1], WrongGradient.apply(arguments[-1]))


def without_a_kernel(*arguments):
    raise RuntimeError('no kernel image is available')


@pytest.mark.parametrize(
    'name, wrong, said',
    [
        ('ms_deform_attn', shifted, 'forward'),
        ('ms_deform_attn', with_nan, 'forward nan'),
        ('ms_deform_attn_fused', with_wrong_gradient_of_the_logits, 'backward 1.0e-01'),
        ('ms_deform_attn', without_a_kernel, 'RuntimeError: no kernel image is available'),
    ],
)
def test_a_wrong_operator_fails(name, wrong, said, monkeypatch, capsys, few_queries):
    wrong.__name__ = name
    monkeypatch.setattr(self_check, name, wrong)
    assert report.main() == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if 'FAILED' in line]
    assert len(failed) == 2  # dtypes
    assert all(name in line and said in line for line in failed)


def test_without_native_code_the_reason_is_given_and_the_exit_status_is_1(
    monkeypatch, capsys, few_queries
):
    monkeypatch.setattr(report, 'native_load_error', lambda: 'the disk is empty')
    assert report.main() == 1
    printed = capsys.readouterr().out
    assert 'backend: PyTorch (slow), because the disk is empty' in printed
    assert 'remedy: pip install' in printed and 'FAILED' not in printed


@needs_native
def test_a_gpu_without_native_kernels_is_not_all_right(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(report, 'cuda_load_error', lambda: 'it was built without CUDA')
    assert report.print_backend() is False
    printed = capsys.readouterr().out
    assert 'CUDA library: none, it was built without CUDA' in printed
    assert 'remedy: FORCE_CUDA=1 pip install' in printed


def write_library(folder, **changes):
    library = folder / '_C.abi3.so'
    library.write_bytes(b'code')
    facts = {'sha256': hashlib.sha256(b'code').hexdigest(), **FACTS, **changes}
    (folder / '_C.build.json').write_text(json.dumps(facts))
    return library


def test_the_record_of_a_library_is_printed(tmp_path, monkeypatch, capsys):
    library = write_library(tmp_path)
    assert read_build_record(library).facts == FACTS
    monkeypatch.setattr(report, 'library_path', lambda name: library)
    report.print_build('_C', 'CUDA 13.0 for 9.0')
    printed = capsys.readouterr().out
    assert 'build: CUDA 13.0 for 9.0' in printed
    assert 'torch 2.11.0 (CUDA: 13.0, C++11 ABI), Python 3.12.3, linux-x86_64' in printed
    assert '    flags: -O3 -DABC\n' in printed and '    nvcc flags: -O3 -DXYZ\n' in printed


@pytest.mark.parametrize(
    'spoil, reason',
    [
        (lambda library, record: record.unlink(), 'no _C.build.json beside it'),
        (lambda library, record: record.write_text('{'), '_C.build.json cannot be read: '),
        (lambda library, record: library.write_bytes(b'other'), 'was written for another library'),
    ],
)
def test_a_record_that_is_missing_or_of_another_library_is_not_believed(spoil, reason, tmp_path):
    library = write_library(tmp_path)
    spoil(library, tmp_path / '_C.build.json')
    facts, missing = read_build_record(library)
    assert facts is None and reason in missing


@pytest.mark.skipif(COMPILER is None, reason='no C++ compiler was found')
def test_setup_records_the_flags_of_what_it_compiles(tmp_path, monkeypatch):
    from setuptools import Distribution
    from torch.utils.cpp_extension import CppExtension

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', ['setup.py', '--version'])
    monkeypatch.setenv('DDETR_BUILD_OPS', '0')
    command = runpy.run_path('setup.py')['build_command']()
    source = tmp_path / 'empty.cpp'
    source.write_text('extern "C" int answer() { return 42; }\n')
    (tmp_path / 'package').mkdir()
    extension = CppExtension(
        'package._C',
        [str(source)],
        define_macros=[('ABC', '7')],
        extra_compile_args={'cxx': ['-O1', '-std=c++17']},
    )
    monkeypatch.chdir(tmp_path)
    distribution = Distribution(
        {'ext_modules': [extension], 'packages': ['package'], 'cmdclass': {'build_ext': command}}
    )
    distribution.get_command_obj('build_ext').inplace = True
    distribution.run_command('build_ext')
    (library,) = (tmp_path / 'package').glob('_C*.so')
    facts, _ = read_build_record(library)
    assert facts['torch'] == torch.__version__
    assert ' -DABC=7 -O1 -std=c++17 ' in facts['cxx_flags']
    said = subprocess.run([COMPILER, '--version'], capture_output=True, text=True).stdout
    assert said.startswith(facts['compiler'])
