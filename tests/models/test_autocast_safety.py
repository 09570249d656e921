"""Under autocast coordinates, boxes, costs and losses are those of float32."""

import pytest
import torch
from builders import VARIANTS, batch, build, tiny_config
from mmengine.registry import OPTIM_WRAPPERS

from benchmarks.long_runs.rounded_products import RoundedProducts
from ddetr_plugin.models import MSDeformAttn
from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.layers import attention
from ddetr_plugin.models.losses.assigner import HungarianAssigner
from ddetr_plugin.models.losses.criterion import SetCriterion

LOW = [torch.bfloat16, torch.float16]
# An 800 x 1333 picture, as COCO configs make it.
SIZES = [(100, 167), (50, 84), (25, 42), (13, 21)]


def locations_in_cells(sizes, reference, offsets):
    """(B, Q, M, L, P, 2) in float64, in feature pixels."""
    cells = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float64)[:, None]
    place = reference.double()[:, :, None, :, None]
    offsets = offsets.double()
    if reference.shape[-1] == 2:
        return place * cells - 0.5 + offsets
    points = offsets.shape[-2]
    return (place[..., :2] + offsets / points * place[..., 2:] / 2) * cells - 0.5


@pytest.fixture
def seen(monkeypatch):
    """What the operator was called with: (sizes, reference, offsets, logits) of every call."""
    calls = []
    original = attention.ms_deform_attn_fused

    def spy(value, sizes, starts, reference, offsets, logits):
        calls.append((sizes, reference, offsets, logits))
        return original(value, sizes, starts, reference, offsets, logits)

    monkeypatch.setattr(attention, 'ms_deform_attn_fused', spy)
    return calls


@pytest.mark.parametrize('reference_size', [2, 4])
@pytest.mark.parametrize('dtype', LOW)
def test_sampling_locations_are_within_a_thousandth_of_a_feature_pixel(dtype, reference_size, seen):
    """Of what float64 makes of the same query and weights, on maps of COCO's size."""
    module = MSDeformAttn(embed_dims=64, num_heads=8, num_levels=4, num_points=4)
    with torch.no_grad():
        # Offsets of some ten cells, as trained models have them.
        module.sampling_offsets.weight.normal_(std=1.0)
    levels = FeatureLevels.from_images(SIZES, (800, 1333), [(800, 1333)], torch.device('cpu'))
    memory = torch.randn(1, sum(h * w for h, w in SIZES), 64)
    # What comes out of the layers before is in 16 bits.
    query = torch.randn(1, 50, 64).to(dtype)
    reference = torch.rand(1, 50, 4, reference_size)
    with torch.autocast('cpu', dtype), torch.no_grad():
        module(query, memory, reference, levels)
    ((sizes, given, offsets, _),) = seen
    weight, bias = module.sampling_offsets.weight.double(), module.sampling_offsets.bias.double()
    exact = (query.double() @ weight.T + bias).view(offsets.shape)
    assert exact.abs().max() > 20
    error = locations_in_cells(sizes, given, offsets) - locations_in_cells(SIZES, reference, exact)
    assert error.abs().max() < 1e-3
    # The bound tells 32 bits from 16: there offsets alone are off by more.
    assert (exact.to(dtype).double() - exact).abs().max() > 1e-3


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('dtype', LOW)
def test_coordinates_boxes_costs_and_losses_are_float32_in_the_whole_detector(
    variant, dtype, seen, monkeypatch
):
    costs, predictions = [], []

    def cost(self, *arguments):
        result = original_cost(self, *arguments)
        costs.append((*arguments, result))
        return result

    def losses_and_matches(self, *arguments):
        predictions.extend(x for x in arguments if isinstance(x, torch.Tensor))
        return original_losses(self, *arguments)

    original_cost, original_losses = HungarianAssigner.cost, SetCriterion.losses_and_matches
    monkeypatch.setattr(HungarianAssigner, 'cost', cost)
    monkeypatch.setattr(SetCriterion, 'losses_and_matches', losses_and_matches)
    model = build(tiny_config(variant)).train()
    inputs, samples = batch()
    with torch.autocast('cpu', dtype):
        # The premise: the rest is in 16 bits.
        assert model.extract_feat(inputs)[0].dtype in LOW or model.neck is None
        losses = model.loss(inputs, samples)
        found = model.eval().predict(inputs, samples)
    assert len(seen) == 6  # training and inference, an encoder layer and two of the decoder
    for _, *coordinates in seen:
        assert all(x.dtype == torch.float32 for x in coordinates)
    numbers = [x for call in costs for x in call if x.is_floating_point()] + predictions
    assert numbers and all(x.dtype == torch.float32 for x in numbers)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    for sample in found:
        assert sample.pred_instances.bboxes.dtype == torch.float32
        assert sample.pred_instances.scores.dtype == torch.float32


def losses_of_a_short_training(optim_wrapper):
    """The sums of the losses of 8 steps that are not left out, as the first of float16 are."""
    model = build(tiny_config('two-stage')).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    settings = dict(optim_wrapper, optimizer=optimizer, clip_grad=dict(max_norm=0.1))
    wrapper = OPTIM_WRAPPERS.build(settings)
    scaler = getattr(wrapper, 'loss_scaler', torch.amp.GradScaler(enabled=False))
    inputs, samples = batch()
    totals = []
    while len(totals) < 8:
        before = scaler.get_scale()
        # torch's own are slow on a CPU.
        with RoundedProducts():
            with wrapper.optim_context(model):
                total = sum(model.loss(inputs, samples).values())
            wrapper.update_params(total)
        # It falls after an overflow.
        if scaler.get_scale() == before:
            totals.append(total.item())
    return torch.tensor(totals)


def test_a_short_training_under_autocast_follows_that_in_float32():
    """Its losses stay within 5 % over 8 steps, on which they fall by three tenths.

    On any CPU: moving each layer's output by a bfloat16 rounding of it and one of its weights, at
    random and in float32 (`rounding.moved`), changes the losses of 20 steps by 0.15 % (three
    trainings).
    """
    exact = losses_of_a_short_training(dict(type='OptimWrapper'))
    assert exact[-1] < 0.7 * exact[0]
    for dtype in ('bfloat16', 'float16'):
        low = losses_of_a_short_training(
            dict(type='ddetr_plugin.AutocastOptimWrapper', dtype=dtype)
        )
        torch.testing.assert_close(low, exact, rtol=0.05, atol=0)
