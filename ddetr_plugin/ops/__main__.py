"""``python -m ddetr_plugin.ops``: which implementation runs here, how it was built, is it right."""

import sys
import warnings

import torch

from ddetr_plugin.ops._native import cuda_load_error, library_path, native_load_error
from ddetr_plugin.ops.build_record import read_build_record
from ddetr_plugin.ops.self_check import ALLOWED, self_checks

_REMEDY = 'pip install --no-build-isolation -e .'


def print_build(name: str, compiled_in: str) -> None:
    """Prints what is known about how a library was built.

    Args:
        name: `_C` or `_C_cuda`.
        compiled_in: what the library says itself.
    """
    path = library_path(name)
    if path is None:
        raise FileNotFoundError(f'ddetr_plugin.ops.{name} was loaded, but its file is gone')
    print(f'    file: {path}')
    print(f'    build: {compiled_in}')
    facts, missing = read_build_record(path)
    if facts is None:
        print(f'    flags: unknown, {missing}; to record them: {_REMEDY}')
        return
    abi = 'C++11' if facts['cxx11_abi'] else 'pre-C++11'
    print(
        f'    built with: torch {facts["torch"]} (CUDA: {facts["torch_cuda"]}, {abi} ABI), '
        f'Python {facts["python"]}, {facts["platform"]}'
    )
    print(f'    built for: torch >= {facts["stable_abi"]}, its stable ABI; any CPython >= 3.10')
    print(f'    compiler: {facts["compiler"]}')
    print(f'    flags: {facts["cxx_flags"]}')
    if 'nvcc' in facts:
        print(f'    nvcc: {facts["nvcc"]}')
        print(f'    nvcc flags: {facts["nvcc_flags"]}')
        print(f'    GPU generations: {facts["architectures"]}')


def print_backend() -> bool:
    """Prints what runs here; returns whether it is native code wherever torch can compute."""
    error = native_load_error()
    print(f'torch: {torch.__version__}, {torch.get_num_threads()} threads')
    if error is not None:
        print(f'backend: PyTorch (slow), because {error}')
        print(f'remedy: {_REMEDY}')
        return False
    print('backend: native')
    print('CPU library')
    try:
        print(f'    dispatch level: {torch.ops.ddetr_plugin.cpu_capability()}')
    except RuntimeError as error:  # the environment variable that limits it
        sys.exit(str(error))
    print_build('_C', torch.ops.ddetr_plugin.build_info())
    no_cuda = cuda_load_error()
    if no_cuda is None:
        print('CUDA library')
        print_build('_C_cuda', torch.ops.ddetr_plugin.cuda_build_info())
        return True
    print(f'CUDA library: none, {no_cuda}')
    if torch.cuda.is_available():
        print(f'remedy: FORCE_CUDA=1 {_REMEDY}')
        return False
    return True


def print_self_check() -> bool:
    """Runs the self-check on every device and prints it; returns whether all is right."""
    print('self-check: error against float64, relative to the largest number of each result')
    right = True
    devices = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])
    for check in self_checks(devices):
        right = right and check.right
        dtype = str(check.dtype).removeprefix('torch.')
        found = check.problem or f'forward {check.forward:.1e}, backward {check.backward:.1e}'
        print(
            f'    {check.device:4} {check.operator:20} {dtype:8} '
            f'{"ok" if check.right else "FAILED"}: {found} (allowed: {ALLOWED[check.dtype]:.0e})'
        )
    return right


def main() -> int:
    """Prints the report.

    Returns:
        0 when native code runs on every device that torch sees, and is right; else 1.
    """
    native = print_backend()
    with warnings.catch_warnings():
        # That the PyTorch path is slow has been said.
        warnings.simplefilter('ignore', RuntimeWarning)
        right = print_self_check()
    return 0 if native and right else 1


if __name__ == '__main__':
    sys.exit(main())
