"""The CUDA sources compile, also where there is no GPU and torch has no CUDA."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which('nvcc') is None, reason='nvcc is not installed')
def test_cuda_sources_compile_without_warnings(tmp_path):
    sources = sorted((ROOT / 'ops' / 'cuda').glob('*.cu'))
    assert sources
    include = Path(torch.__file__).parent / 'include'
    for source in sources:
        done = subprocess.run(
            [
                'nvcc',
                '-std=c++17',
                '-c',
                str(source),
                '-o',
                str(tmp_path / f'{source.stem}.o'),
                f'-I{include}',
                '-DTORCH_TARGET_VERSION=0x020a000000000000',
                '-DUSE_CUDA',
                # A CPU build of torch lacks the header that its CUDA build generates.
                '-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE',
                '-Xcompiler=-fPIC',
                '-gencode=arch=compute_80,code=sm_80',
                '-gencode=arch=compute_90,code=sm_90',
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        ours = [line for line in done.stderr.splitlines() if 'warning' in line and 'ops/' in line]
        assert not ours, done.stderr
