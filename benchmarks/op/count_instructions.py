"""Counts the machine instructions of the CUDA kernels per (query, head); needs nvcc, but no GPU.

    python -m benchmarks.op.count_instructions [--arch 90] [--out counts.json]

Compiles ops/cuda for one GPU generation, disassembles it, and follows one warp through the kernels
for rows of 32 channels, 4 levels and 4 points: what lies in a loop counts as often as the loop
turns, all else once, whether a condition skips it or not; loops of unknown length (the search for
a query's level, copying the level numbers) count as one turn. So this is an upper limit. What only
runs when the lanes of a warp have parted, which they never do at that place, is left out. A warp
works at several rows, and its instructions are divided among them.

Prints a table with registers and register spills, then JSON. nvdisasm is looked for on PATH, in
CUDA_HOME and in the environment variable NVDISASM; `pip install nvidia-cuda-nvdisasm` has it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import ROOT

SOURCE = ROOT / 'ops' / 'cuda' / 'ms_deform_attn_cuda.cu'
LEVELS, POINTS, CHANNELS, WARP = 4, 4, 32, 32
SAMPLES = LEVELS * POINTS
BYTES = {'float': 4, '__half': 2, '__nv_bfloat16': 2}
DTYPES = {'float': 'float32', '__half': 'float16', '__nv_bfloat16': 'bfloat16'}


class Usage(NamedTuple):
    """What the compiler says about one kernel."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


class Instruction(NamedTuple):
    """One line of machine code: where control goes is an index, or None."""

    text: str
    target: int | None


def toolkit(name: str) -> str | None:
    """Path of a CUDA tool; None where it is not installed."""
    named = os.environ.get(name.upper())
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH') or '/usr/local/cuda'
    return named or shutil.which(name) or shutil.which(name, path=str(Path(home) / 'bin'))


def nvcc_options() -> list[str]:
    """What every compilation of ops/cuda needs, also with a torch that was built without CUDA."""
    import torch

    options = [
        '-std=c++17',
        '-O3',
        f'-I{Path(torch.__file__).parent / "include"}',
        '-DTORCH_TARGET_VERSION=0x020a000000000000',
        '-DUSE_CUDA',
    ]
    if torch.version.cuda is None:
        # A CPU build of torch lacks the header that its CUDA build generates.
        options.append('-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE')
    return options


def compile_kernels(arch: str, cubin: Path, source: Path = SOURCE) -> dict[str, Usage]:
    """Compiles `source` for sm_`arch`; returns what each kernel uses, by its mangled name.

    Raises:
        SystemExit: it does not compile, or warns.
    """
    command = [toolkit('nvcc'), *nvcc_options(), f'-arch=sm_{arch}', '-cubin', '-Xptxas', '-v']
    done = subprocess.run([*command, '-o', cubin, source], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if 'warning' in line and 'ops/cuda' in line]
    if done.returncode or ours:
        raise SystemExit('\n'.join(ours) or done.stderr)
    usage = {}
    for block in done.stderr.split('Compiling entry function ')[1:]:
        stores, loads = re.search(
            r'(\d+) bytes spill stores, (\d+) bytes spill loads', block
        ).groups()
        shared = re.search(r'(\d+) bytes smem', block)
        usage[re.match(r"'(\w+)'", block)[1]] = Usage(
            registers=int(re.search(r'Used (\d+) registers', block)[1]),
            spilled_bytes=int(stores) + int(loads),
            shared_bytes=int(shared[1]) if shared else 0,
        )
    return usage


def disassemble(cubin: Path) -> dict[str, list[Instruction]]:
    """The instructions of every kernel, by its mangled name."""
    listing = subprocess.run(
        [toolkit('nvdisasm'), '-c', cubin], capture_output=True, text=True, check=True
    ).stdout
    kernels = {}
    for section in re.split(r'\n\.text\.', listing)[1:]:
        labels, texts = {}, []
        for line in section.splitlines():
            label = re.match(r'(\.L_\w+):', line)
            code = re.match(r'\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;', line)
            if label:
                labels[label[1]] = len(texts)
            elif code:
                texts.append(code[1])
        name = section.partition(':')[0]
        kernels[name] = []
        for text in texts:
            target = re.search(r'\bBRA\b.*`\((\.L_\w+)\)', text)
            kernels[name].append(Instruction(text, labels[target[1]] if target else None))
    return kernels


def reached(code: list[Instruction]) -> set[int]:
    """Indices of the instructions that a warp can reach whose lanes stay together."""
    found, waiting = set(), [0]
    while waiting:
        at = waiting.pop()
        while at < len(code) and at not in found:
            found.add(at)
            text, target = code[at]
            conditional = text.startswith('@')
            if target is not None and 'BRA.DIV' not in text:
                waiting.append(target)
            ends = re.search(r'\b(EXIT|RET|BRA(?!\.DIV))\b', text)
            # Some conditions are not a leading predicate but the branch's own operand.
            if ends and not conditional and not re.search(r'BRA\.?\S* !?(U?P\d)', text):
                break
            at += 1
    return found


def loops(code: list[Instruction], live: set[int]) -> list[range]:
    """Ranges of instructions from the target of a backward branch to that branch."""
    last = {}
    for at in live:
        target = code[at].target
        if target is not None and target < at and 'BRA.DIV' not in code[at].text:
            last[target] = max(at, last.get(target, 0))
    return [range(first, end + 1) for first, end in last.items()]


def count(code: list[Instruction], samples_per_turn: int, samples_per_round: int) -> int:
    """Instructions of one warp: the gathering loop, the loop of rounds around it, and the rest.

    Args:
        code: a kernel.
        samples_per_turn: of a row, in a turn of the gathering loop.
        samples_per_round: of a row, in a turn of the loop around it.
    """
    live = reached(code)
    found = loops(code, live)

    def times(loop, word):
        return sum(word in code[at].text for at in loop if at in live)

    # The gathering loop has four 16-byte loads per sample, and in a backward adds to memory.
    adds = any('RED' in code[at].text for at in live)
    gathering = [loop for loop in found if times(loop, 'LDG.E.128') >= 4]
    if adds:
        gathering = [loop for loop in gathering if times(loop, 'RED')]
    inner = min(gathering, key=len)
    around = [x for x in gathering if x != inner and x[0] <= inner[0] and inner[-1] <= x[-1]]
    # Where one round is all there is, the compiler may leave no loop.
    outer = min(around, key=len) if around else inner
    rounds = -(-SAMPLES // samples_per_round)
    turns = -(-min(SAMPLES, samples_per_round) // samples_per_turn)
    total = 0
    for at in live:
        total += rounds * turns if at in inner else rounds if at in outer else 1
    return total


def measure(usage: dict[str, Usage], cubin: Path) -> list[dict]:
    """Counts of the kernels for rows of 32 channels.

    Args:
        usage: of all kernels, from `compile_kernels`.
        cubin: what that has compiled.
    """
    rows = []
    pattern = re.compile(
        r'(forward|backward)_kernelI(f|6__half|13__nv_bfloat16)Li(\d+)ELi(\d+)ELi1ENS_1\d'
        r'(Plain|Fused)PointsIf(?:Li(\d)E)?E'
    )
    for name, instructions in disassemble(cubin).items():
        found = pattern.search(name)
        if not found:
            continue
        direction, element, _, lanes, operator, reference = found.groups()
        element = 'float' if element == 'f' else re.sub(r'^\d+', '', element)
        lanes = int(lanes)
        # As in samples.cuh and numbers.cuh: two samples per lane and round, four per turn of the
        # gathering loop.
        warp = count(instructions, 4, 2 * lanes)
        rows.append(
            {
                'pass': direction,
                'operator': operator.lower() + (f', reference of {reference}' if reference else ''),
                'dtype': DTYPES[element],
                'per_query_and_head': round(warp * lanes / WARP, 1),
                'per_warp': warp,
                'registers': usage[name].registers,
                'spilled_bytes': usage[name].spilled_bytes,
            }
        )
    rows.sort(key=lambda row: (row['pass'] != 'forward', row['operator'], row['dtype']))
    return rows


def main(arguments=None) -> int:
    """Prints the counts; returns 1 where a kernel spills registers."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.op.count_instructions', description=__doc__.split('\n')[0]
    )
    parser.add_argument('--arch', default='90', help='GPU generation, such as 80 or 90')
    parser.add_argument('--out', type=Path, help='also write the JSON to this file')
    options = parser.parse_args(arguments)
    missing = [name for name in ('nvcc', 'nvdisasm') if toolkit(name) is None]
    if missing:
        raise SystemExit(f'{" and ".join(missing)} not found; install the CUDA toolkit')
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / 'kernels.cubin'
        usage = compile_kernels(options.arch, cubin)
        rows = measure(usage, cubin)
    print(f'{"pass":9} {"operator":22} {"dtype":9} {"per query, head":>15} {"registers":>10}')
    for row in rows:
        print(
            f'{row["pass"]:9} {row["operator"]:22} {row["dtype"]:9} '
            f'{row["per_query_and_head"]:15} {row["registers"]:10}'
        )
    spilling = {name: use.spilled_bytes for name, use in usage.items() if use.spilled_bytes}
    print(f'{len(usage)} kernels for sm_{options.arch}, {len(spilling)} of them spill registers')
    report = {'arch': options.arch, 'levels': LEVELS, 'points': POINTS, 'channels': CHANNELS}
    text = json.dumps({**report, 'kernels': rows, 'spilling': spilling}, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + '\n', encoding='utf-8')
    return 1 if spilling else 0


if __name__ == '__main__':
    sys.exit(main())
