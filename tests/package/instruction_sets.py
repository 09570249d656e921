"""Runs the numeric part of the tests under each instruction set that the machine has.

    python tests/package/instruction_sets.py [ARGUMENT of pytest ...]

Three libraries choose instructions by themselves: oneDNN (products and convolutions, above all in
16 bits), torch's own kernels, and the operator. They are lowered together, in the steps that are
common among CPUs; what is asked for and what is then in use is printed.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parents[1]
NUMERIC = (
    'ops/test_cpu_kernels.py',
    'ops/test_dropout.py',
    'ops/test_fused.py',
    'ops/test_ms_deform_attn.py',
    'ops/test_op_fuzz.py',
    'ops/test_op_limits.py',
    'ops/test_op_properties.py',
    'ops/test_op_transforms.py',
    'ops/test_replace_mmcv_op.py',
    'ops/test_self_check.py',
    'models',
    'benchmarks/test_amp_accuracy.py',
    'engine/test_determinism.py',
)
REPORT = """
import torch
from ddetr_plugin.ops import native_load_error
# Large enough for oneDNN, which then says what it uses.
torch.nn.functional.conv2d(torch.ones(4, 64, 59, 59), torch.ones(64, 64, 3, 3))
ours = 'not built' if native_load_error() else torch.ops.ddetr_plugin.cpu_capability()
print('in use:', torch.backends.cpu.get_cpu_capability(), ours)
"""


class Level(NamedTuple):
    """The most that each library may use; None leaves the choice to it."""

    name: str
    onednn: str | None
    torch: str | None
    ours: str | None

    def environment(self) -> dict:
        """The variables that ask for this level."""
        names = {
            'ONEDNN_MAX_CPU_ISA': self.onednn,
            'ATEN_CPU_CAPABILITY': self.torch,
            'DDETR_CPU_CAPABILITY': self.ours,
        }
        return {name: value for name, value in names.items() if value is not None}


LOWEST = Level('no AVX', 'SSE41', 'default', 'default')
AVX2 = Level('AVX2', 'AVX2', 'avx2', 'avx2')
AVX512 = Level('AVX-512 without 16-bit arithmetic', 'AVX512_CORE', 'avx512', 'avx512')
BEST = Level('all that the machine has', None, None, None)


def levels(capability: str) -> list[Level]:
    """The levels worth running on a machine.

    Args:
        capability: what torch uses by itself, `torch.backends.cpu.get_cpu_capability()`.
    """
    if capability.startswith('AVX512'):
        return [LOWEST, AVX2, AVX512, BEST]
    if capability == 'AVX2':
        return [LOWEST, AVX2, BEST]
    # Other processors take none of these names.
    return [BEST]


def in_use(environment: dict) -> str:
    """What the libraries say that they use."""
    done = subprocess.run(
        [sys.executable, '-c', REPORT],
        env={**environment, 'ONEDNN_VERBOSE': '1'},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    isa = [line.split('isa:')[1] for line in lines if ',info,cpu,isa:' in line]
    (used,) = (line for line in lines if line.startswith('in use:'))
    torch_uses, ours = used.removeprefix('in use: ').split(' ', 1)
    return f'oneDNN {isa[0] if isa else "unknown"}, torch {torch_uses}, operator {ours}'


def main(arguments: list) -> int:
    """Returns the exit status: 0 when all levels pass."""
    import torch

    failed = []
    for level in levels(torch.backends.cpu.get_cpu_capability()):
        environment = {**os.environ, **level.environment()}
        asked = ' '.join(f'{name}={value}' for name, value in level.environment().items())
        print(f'== {level.name}: {asked or "nothing lowered"}', flush=True)
        print(f'   in use: {in_use(environment)}', flush=True)
        done = subprocess.run(
            [sys.executable, '-m', 'pytest', '-q', '--tb=short', *arguments]
            + [str(TESTS / name) for name in NUMERIC],
            env=environment,
            cwd=TESTS.parent,
        )
        if done.returncode:
            failed.append(level.name)
    print(f'Failed under: {"; ".join(failed)}' if failed else 'Passed under every level')
    return 1 if failed else 0


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
