"""Whole models on a GPU that is not there: tensors have its device and a shape, but no numbers.

torch refuses whatever mixes devices, and whatever reads a number of such a tensor. It needs a torch
with CUDA for that, but no GPU.
"""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from builders import VARIANTS, batch, build, tiny_config
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call

from ddetr_plugin.models import HungarianAssigner

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason='this torch was built without CUDA'
)
GPU = torch.device('cuda', 0)
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


@contextmanager
def autocast_on_gpu(dtype):
    """torch.autocast turns itself off where there is no GPU."""
    if dtype == torch.float32:
        yield
        return
    torch.set_autocast_enabled('cuda', True)
    torch.set_autocast_dtype('cuda', dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled('cuda', False)
        torch.clear_autocast_cache()


def match_at_random(assigner, costs, num_gts):
    """Stands in for match_batch, the one place where the host may read."""
    assert {cost.device for cost in costs} == {GPU}
    random = np.random.default_rng(0)
    return [
        [[assigner.match(random.random((cost.shape[2], n))) for n in numbers] for _ in cost]
        for cost, numbers in zip(costs, num_gts)
    ]


class OnGPU:
    """A model and a batch of which all tensors are on the GPU that is not there."""

    def __init__(self, variant):
        self.mode = FakeTensorMode()
        self.model = build(tiny_config(variant))
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        self.tensors = {name: self.move(x) for name, x in tensors.items()}
        inputs, samples = batch()
        for sample in samples:
            truths = sample.gt_instances
            for name in truths.keys():  # noqa: SIM118  it is no dict
                setattr(truths, name, self.move(truths[name]))
        self.batch = self.move(inputs), samples

    def move(self, x):
        # Without gradients: the autograd engine asks for the device.
        x = self.mode.from_tensor(x.detach())
        with self.mode:
            return x.to(GPU)

    def run(self, mode, dtype):
        with (
            self.mode,
            torch.no_grad(),
            mock.patch.object(HungarianAssigner, 'match_batch', match_at_random),
            autocast_on_gpu(dtype),
        ):
            return functional_call(self.model, self.tensors, self.batch, dict(mode=mode))


@pytest.mark.parametrize('dtype', PRECISIONS)
@pytest.mark.parametrize('variant', VARIANTS)
def test_training_stays_on_the_gpu_but_for_its_matching(variant, dtype):
    on_gpu = OnGPU(variant)
    on_gpu.model.train()
    losses = on_gpu.run('loss', dtype)
    assert losses
    assert {(x.device, x.dtype) for x in losses.values()} == {(GPU, torch.float32)}


@pytest.mark.parametrize('dtype', PRECISIONS)
@pytest.mark.parametrize('variant', VARIANTS)
def test_detections_stay_on_the_gpu(variant, dtype):
    on_gpu = OnGPU(variant)
    on_gpu.model.eval()
    for sample in on_gpu.run('predict', dtype):
        found = sample.pred_instances
        assert {found.bboxes.device, found.scores.device, found.labels.device} == {GPU}
        assert found.bboxes.dtype == found.scores.dtype == torch.float32


def test_the_premise_that_torch_refuses_both():
    on_gpu = OnGPU('two-stage')
    x = on_gpu.tensors['bbox_head.cls_branches.0.weight']
    with on_gpu.mode, torch.no_grad():
        with pytest.raises(RuntimeError, match='device'):
            x + torch.ones(x.shape)
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with autocast_on_gpu(torch.float16):
            assert (x @ x.T).dtype == torch.float16
