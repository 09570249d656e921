#!/usr/bin/env bash
# torch 2.13.0 (CPU), torch.compile(dynamic=True).
#
# Expected: dynamic=True makes sizes symbolic, so that a model is compiled once for all of them.
# Happens: it also makes a symbol of every float that a module keeps: the eps of a norm, the rate of
#   a dropout. The backend compiles the graph, only then the symbol turns out to be a constant, and
#   the whole graph is traced and compiled once more. Without dynamic=True, or with
#   torch._dynamo.config.specialize_float, each graph is compiled once.
# Hurts: compilation takes twice as long for any model with a norm, which is minutes for a detector.
#   The counters show one graph; nothing warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd

print('torch', torch.__version__)
calls = 0
ahead_of_time = aot_autograd(fw_compiler=lambda graph, inputs: graph)


def backend(graph, inputs):
    global calls
    calls += 1
    return ahead_of_time(graph, inputs)


def times(module, **options):
    global calls
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    calls = 0
    torch.compile(module, backend=backend, **options)(torch.randn(3, 8))
    return calls, torch._dynamo.utils.counters['stats']['unique_graphs']


linear = nn.Linear(8, 8)
with_norm = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
found = {
    'linear, dynamic=True': times(linear, dynamic=True),
    'linear and norm': times(with_norm),
    'linear and norm, dynamic=True': times(with_norm, dynamic=True),
    'linear and dropout, dynamic=True': times(nn.Sequential(linear, nn.Dropout(0.1)), dynamic=True),
}
torch._dynamo.config.specialize_float = True
found['linear and norm, dynamic=True, specialize_float'] = times(with_norm, dynamic=True)
for name, (compiled, graphs) in found.items():
    print(f'{name}: given to the backend {compiled} times, counted as {graphs} graph')
assert [each for each, _ in found.values()] == [1, 1, 2, 2, 1], found
PYTHON
