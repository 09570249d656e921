"""What the CUDA kernels use on each GPU generation that setup.py builds for; needs nvcc, no GPU.

    python -m benchmarks.op.kernel_usage [--out cuda_kernels.json]

Compiles ops/cuda for each and writes how many kernels there are, which of them spill registers, and
the most registers and shared memory of one. The record also names the sources by their checksum:
tests compile for one generation, and fail where the sources are no longer those of the record.
"""

import argparse
import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.op.count_instructions import Usage, compile_kernels, toolkit
from benchmarks.processes import ROOT

RECORD = ROOT / 'benchmarks' / 'results' / 'cuda_kernels.json'
# Generations with the instructions of 80 and other numbers of units.
LIKE_80 = ('86', '89')


def generations() -> list[str]:
    """What setup.py builds for, such as '90', each set of instructions once."""
    text = (ROOT / 'setup.py').read_text(encoding='utf-8')
    names = re.search(r'^CUDA_ARCHITECTURES = (\(.*\))$', text, re.MULTILINE)[1]
    found = [name.removesuffix('+PTX').replace('.', '') for name in ast.literal_eval(names)]
    return [name for name in found if name not in LIKE_80]


def checksum() -> str:
    """sha256 over the names and texts of all that the kernels are compiled from."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / 'ops' / 'cuda').iterdir(), *(ROOT / 'ops').glob('*.h')]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b'\0')
        digest.update(path.read_bytes() + b'\0')
    return digest.hexdigest()


def nvcc_version() -> str:
    """Such as 'V13.0.88'."""
    command = [toolkit('nvcc'), '--version']
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.search(r'\bV[\d.]+', text)[0]


def summary(usage: Mapping[str, Usage]) -> dict:
    """The record of one generation.

    Args:
        usage: of all kernels, by mangled name.
    """
    return {
        'kernels': len(usage),
        'spilling': {name: use.spilled_bytes for name, use in usage.items() if use.spilled_bytes},
        'most_registers': max(use.registers for use in usage.values()),
        'most_shared_bytes': max(use.shared_bytes for use in usage.values()),
    }


def main(arguments=None) -> int:
    """Writes the record; returns 1 where a kernel spills registers."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.op.kernel_usage', description=__doc__.split('\n')[0]
    )
    parser.add_argument('--out', type=Path, default=RECORD, help='default: %(default)s')
    options = parser.parse_args(arguments)
    if toolkit('nvcc') is None:
        raise SystemExit('nvcc not found; install the CUDA toolkit')
    record = {'sources': checksum(), 'nvcc': nvcc_version(), 'generations': {}}
    for generation in generations():
        with tempfile.TemporaryDirectory() as folder:
            usage = compile_kernels(generation, Path(folder, 'kernels.cubin'))
        record['generations'][generation] = summary(usage)
        print(f'sm_{generation}:', json.dumps(record['generations'][generation]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    return 1 if any(each['spilling'] for each in record['generations'].values()) else 0


if __name__ == '__main__':
    sys.exit(main())
