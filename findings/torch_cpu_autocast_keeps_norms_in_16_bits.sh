#!/usr/bin/env bash
# torch 2.13.0 (CPU), torch.autocast.
#
# Expected: one list of operations that autocast runs in float32, whatever the device: norms,
#   softmax, sums and cumulative sums, as the guides to mixed precision teach it for GPUs.
# Happens: autocast has a kernel of its own for them under CUDA and none under CPU. There they
#   run, and return, in 16 bits once their input is: a norm behind a convolution or a linear layer
#   starts a residual stream of 16 bits, which on a GPU is float32.
# Hurts: who checks a model's mixed precision on a CPU, or trains on one, gets other dtypes and
#   less accuracy than the same code has on a GPU; nothing warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.nn import functional as F

print('torch', torch.__version__)
has = torch._C._dispatch_has_kernel_for_dispatch_key
lists = {}
for name in ('layer_norm', 'group_norm', 'softmax.int', 'sum', 'cumsum', 'prod', 'linear'):
    lists[name] = tuple(has(f'aten::{name}', f'Autocast{device}') for device in ('CPU', 'CUDA'))
    print(f'{name:12} has a kernel under AutocastCPU, AutocastCUDA: {lists[name]}')

torch.manual_seed(0)
norm, linear = nn.LayerNorm(64), nn.Linear(64, 64)
x = torch.randn(2, 64)
with torch.autocast('cpu', torch.bfloat16):
    narrow = linear(x)
    results = {
        'layer_norm': norm(narrow),
        'softmax.int': narrow.softmax(-1),
        'sum': narrow.sum(),
        'cumsum': narrow.cumsum(-1),
        'prod': narrow.prod(),
    }
for name, result in results.items():
    print(f'{name:12} of bfloat16 under CPU autocast is {result.dtype}')

# A stack of x = norm(x + linear(x)), as a transformer with norms behind its layers has.
layers = [(nn.Linear(64, 64), nn.LayerNorm(64)) for _ in range(12)]


def stack(x):
    for linear, norm in layers:
        x = norm(x + F.relu(linear(x)))
    return x


start = torch.randn(256, 64).bfloat16()
exact = stack(start.float())
errors = []
for first in (start, start.float()):
    with torch.autocast('cpu', torch.bfloat16):
        found = stack(first)
    errors.append(((found.float() - exact).norm() / exact.norm()).item())
print('error of the stack with a 16-bit and with a float32 start: %.4f %.4f' % tuple(errors))

narrow_on_cpu = ('layer_norm', 'group_norm', 'softmax.int', 'sum', 'cumsum')
same = all(lists[name] == (False, True) for name in narrow_on_cpu)
same &= lists['prod'] == lists['linear'] == (True, True)
same &= all(
    result.dtype == (torch.float32 if name == 'prod' else torch.bfloat16)
    for name, result in results.items()
)
same &= errors[0] > 1.2 * errors[1]
raise SystemExit(0 if same else 'the behaviour has changed')
PYTHON
