"""Our models against mmdet's own with the same weights: losses, gradients, detections."""

import numpy as np
import pytest
import torch
from builders import VARIANTS, batch, build, mmdet_name, mmdet_twin, tiny_config
from mmcv.ops import MultiScaleDeformableAttention

from ddetr_plugin.models import FeatureLevels, MSDeformAttn

BATCHES = {
    'padded': dict(gts=(3, 2)),
    'one picture empty': dict(gts=(4, 0)),
    'not padded': dict(image_shapes=((64, 96), (64, 96)), gts=(1, 5)),
}


@pytest.fixture(
    scope='module',
    params=[(variant, bias) for variant in VARIANTS for bias in (True, False)],
    ids=lambda param: param[0] + ('' if param[1] else ', neck bias zero'),
)
def twins(request):
    """(ours, mmdet's) with the same weights, converted.

    With the neck's bias at zero, mmdet's neck is its default one, without (D1). mmdet's two-stage
    model works with 256 channels only.
    """
    variant, bias = request.param
    config = tiny_config(variant, embed_dims=256 if variant == 'two-stage' else 32)
    ours = build(config)
    if not bias:
        for name, parameter in ours.neck.named_parameters():
            if name.endswith('conv.bias'):
                torch.nn.init.zeros_(parameter)
    theirs = mmdet_twin(config, ours)
    assert ('neck.convs.0.conv.bias' in theirs.state_dict()) == bias
    return ours, theirs


def assert_close(ours, theirs, relative=1e-5):
    assert ours.shape == theirs.shape
    largest = theirs.detach().abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=relative * largest)


@pytest.mark.parametrize('kind', BATCHES)
def test_losses_and_every_gradient_equal_those_of_mmdet(twins, kind):
    ours, theirs = twins
    inputs, samples = batch(**BATCHES[kind])
    losses = {}
    for model in (ours, theirs):
        # Batch norm and its statistics are frozen; there is no dropout.
        model.train().zero_grad()
        losses[model] = model.loss(inputs, samples)
        sum(losses[model].values()).backward()
    wanted = {name: loss.item() for name, loss in losses[theirs].items()}
    assert {name: loss.item() for name, loss in losses[ours].items()} == pytest.approx(
        wanted, rel=1e-5
    )

    their_parameters = dict(theirs.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        other = their_parameters.pop(mmdet_name(name, ours), None)
        if other is None:
            assert 'neck' in name and name.endswith('conv.bias')
            continue
        gradient = other.grad
        if not parameter.requires_grad:
            assert gradient is None
            continue
        assert_close(parameter.grad, gradient, 1e-4)
        compared += 1
    assert not their_parameters
    assert compared > 90


@pytest.mark.parametrize('kind', BATCHES)
@pytest.mark.parametrize('rescale', [True, False])
def test_detections_equal_those_of_mmdet_up_to_its_clipping(twins, kind, rescale):
    ours, theirs = twins
    inputs, samples = batch(**BATCHES[kind])
    results = []
    for model in (ours.eval(), theirs.eval()):
        with torch.no_grad():
            predicted = model.predict(inputs, samples, rescale=rescale)
        results.append([sample.pred_instances for sample in predicted])
    for sample, mine, other in zip(samples, *results):
        height, width = np.array(sample.img_shape) / (0.5 if rescale else 1)
        boxes = torch.stack(
            [mine.bboxes[:, i].clamp(0, (width, height)[i % 2]) for i in range(4)], dim=-1
        )
        assert len(mine) == ours.bbox_head.max_per_img
        assert_close(mine.scores, other.scores)
        assert_close(boxes, other.bboxes)
        assert mine.labels.tolist() == other.labels.tolist()


@pytest.mark.parametrize('coordinates', [2, 4])
@pytest.mark.parametrize('padded', [False, True])
def test_attention_equals_that_of_mmcv_without_its_residual(coordinates, padded):
    ours = MSDeformAttn(embed_dims=24, num_heads=4, num_levels=2, num_points=3)
    theirs = MultiScaleDeformableAttention(
        embed_dims=24, num_heads=4, num_levels=2, num_points=3, batch_first=True, dropout=0.0
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    theirs.load_state_dict(ours.state_dict())
    shapes = [(40, 64), (32, 48)] if padded else [(40, 64), (40, 64)]
    levels = FeatureLevels.from_images([(5, 8), (3, 4)], (40, 64), shapes, torch.device('cpu'))
    assert (levels.padding_mask is not None) == padded
    query, memory = torch.randn(2, 7, 24), torch.randn(2, 52, 24)
    reference = torch.rand(2, 7, 2, coordinates)
    output = ours(query, memory, reference, levels)
    expected = theirs(
        query,
        value=memory,
        identity=torch.zeros_like(query),
        key_padding_mask=levels.padding_mask,
        reference_points=reference,
        spatial_shapes=levels.spatial_shapes,
        level_start_index=levels.level_start_index,
    )
    assert_close(output, expected)


@pytest.mark.parametrize(('heads', 'levels', 'points'), [(8, 4, 4), (4, 1, 3), (3, 2, 1)])
def test_attention_starts_with_the_offsets_of_mmcv(heads, levels, points):
    sizes = dict(embed_dims=24, num_heads=heads, num_levels=levels, num_points=points)
    ours, theirs = MSDeformAttn(**sizes), MultiScaleDeformableAttention(**sizes)
    ours.init_weights()
    for name in ('sampling_offsets', 'attention_weights'):
        mine, other = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(mine.bias, other.bias, rtol=0, atol=1e-6)
        assert torch.equal(mine.weight, other.weight)
