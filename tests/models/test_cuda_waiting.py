"""How often the host waits for a GPU: `torch.cuda.set_sync_debug_mode` counts."""

import warnings

import pytest
import torch
from builders import VARIANTS, batch, build, tiny_config

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA GPU is visible'),
]


def on_gpu(variant):
    model = build(tiny_config(variant)).cuda()
    inputs, samples = batch()
    return model, inputs.cuda(), [sample.cuda() for sample in samples]


def waits(call):
    """How many times `call` waited for the GPU. It runs twice before: first calls allocate."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    return [str(w.message) for w in caught if 'synchroniz' in str(w.message)]


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_network_never_waits(variant):
    model, inputs, samples = on_gpu(variant)
    model.eval()
    with torch.inference_mode():
        assert waits(lambda: model.forward_batch(inputs, samples)) == []


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_training_step_waits_once_for_its_matching(variant):
    model, inputs, samples = on_gpu(variant)
    model.train()

    def step():
        sum(model.loss(inputs, samples).values()).backward()

    assert len(waits(step)) == 1
