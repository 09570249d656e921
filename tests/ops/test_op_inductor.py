"""torch.compile with its usual backend, which compiles C++ for the CPU around the operator."""

import os
import shutil

import pytest
import torch
from op_cases import case, fused_case, needs_native, outputs_and_gradients

from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_fused

COMPILER = next(
    filter(None, map(shutil.which, filter(None, [os.environ.get('CXX'), 'g++', 'clang++']))), None
)
pytestmark = [
    needs_native,
    pytest.mark.skipif(COMPILER is None, reason='inductor needs a C++ compiler; none was found'),
]


@pytest.mark.parametrize('dynamic', [False, True], ids=['static', 'dynamic'])
@pytest.mark.parametrize('fused', [False, True], ids=['plain', 'fused'])
def test_inductor_gives_the_values_and_gradients_of_eager_mode(
    fused, dynamic, tmp_path, monkeypatch
):
    # Nothing that an earlier run compiled.
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    operator, make = (ms_deform_attn_fused, fused_case) if fused else (ms_deform_attn, case)

    def layer(value, shapes, starts, points, *weights):
        # Arithmetic on both sides for inductor to fuse.
        output = operator(value.sin(), shapes, starts, points * 1.01, *weights)
        return output.relu() + 1

    torch.compiler.reset()
    compiled = torch.compile(layer, backend='inductor', fullgraph=True, dynamic=dynamic)
    # Sizes that change differ from all others: torch would take equal ones for the same.
    shapes = [(4, 7, ((7, 5), (3, 4))), (6, 9, ((8, 6), (4, 3)))]
    for number, (batch, queries, sizes) in enumerate(shapes[: 1 + dynamic]):
        arguments = make(batch=batch, queries=queries, points=8, sizes=sizes, dtype=torch.float32)
        # The first compilation serves all sizes.
        with torch.compiler.set_stance('fail_on_recompile' if number else 'default'):
            ours = outputs_and_gradients(compiled, arguments)
        theirs = outputs_and_gradients(layer, arguments)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
