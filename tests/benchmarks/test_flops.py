"""Multiply-adds against hand formulas: of small modules, of the operator, of a whole detector."""

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from builders import tiny_config
from mmengine.registry import DefaultScope
from torch import nn

from benchmarks.table import flops
from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.layers.attention import MSDeformAttn, MultiheadSelfAttention
from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_fused, native_load_error
from ddetr_plugin.registry import MODELS

pytestmark = pytest.mark.skipif(native_load_error() is not None, reason='native op not built')

SIZES = ((5, 7), (3, 4))


def total(forward, model=None):
    return sum(flops.count_multiply_adds(forward, model).values())


def test_a_linear_layer_costs_rows_times_inputs_times_outputs():
    layer = nn.Linear(6, 10)
    assert total(lambda: layer(torch.zeros(2, 7, 6)), layer) == 2 * 7 * 6 * 10


def test_a_grouped_strided_convolution_costs_its_kernel_at_each_output():
    layer = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
    # 9 x 13 -> 5 x 7
    assert total(lambda: layer(torch.zeros(2, 8, 9, 13)), layer) == 2 * 5 * 7 * 12 * 2 * 3 * 3


def test_attention_costs_both_products_on_a_cpu():
    q, kv = torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 9, 8)
    counted = total(lambda: nnf.scaled_dot_product_attention(q, kv, kv))
    assert counted == 2 * 4 * 5 * 9 * 8 * 2


@pytest.mark.parametrize('same', [True, False])
def test_torchs_attention_module_costs_its_projections_and_products(same):
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x, y = torch.zeros(2, 5, 16), torch.zeros(2, 9, 16)
    keys = 5 if same else 9
    projections = (5 + keys + keys + 5) * 16 * 16
    counted = total(lambda: layer(x, x if same else y, x if same else y), layer)
    assert counted == 2 * (projections + 2 * 5 * keys * 16)


def operator_arguments(batch=2, queries=6, heads=3, points=4, channels=5):
    tokens = sum(h * w for h, w in SIZES)
    shape = (batch, queries, heads, len(SIZES), points)
    value = torch.zeros(batch, tokens, heads, channels)
    return value, torch.zeros(*shape, 2), torch.zeros(shape)


def test_the_operator_costs_five_per_sampled_channel():
    value, locations, weights = operator_arguments()
    expected = 5 * 2 * 6 * 3 * 2 * 4 * 5  # 5 B Q M L P D
    assert total(lambda: ms_deform_attn(value, SIZES, None, locations, weights)) == expected
    reference = torch.zeros(2, 6, 2, 4)
    fused = total(lambda: ms_deform_attn_fused(value, SIZES, None, reference, locations, weights))
    assert fused == expected


def test_deformable_attention_costs_what_the_paper_says():
    """N_q C^2 + S C^2 + 5 N_q L K C + 3 N_q C M L K, A.1; no min(): the values come first."""
    module = MSDeformAttn(embed_dims=24, num_heads=3, num_levels=2, num_points=4)
    tokens, queries, channels, samples = 5 * 7 + 3 * 4, 6, 24, 2 * 4
    levels = FeatureLevels.from_images(SIZES, (40, 56), [(40, 56)], torch.device('cpu'))
    counted = total(
        lambda: module(
            torch.zeros(1, queries, channels),
            torch.zeros(1, tokens, channels),
            torch.zeros(1, queries, 2, 2),
            levels,
        ),
        module,
    )
    assert counted == (
        (queries + tokens) * channels**2
        + 5 * queries * samples * channels
        + 3 * queries * channels * 3 * samples
    )


def sum_of_parts(model, height, width):
    """Multiply-adds of a real forward pass, by formulas on the shapes that the modules see."""
    parts = []

    def convolution(module, inputs, output):
        taps = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        parts.append(output.numel() * taps)

    def linear(module, inputs, output):
        parts.append(output.numel() * module.in_features)

    def self_attention(module, inputs, output):
        batch, queries, channels = inputs[0].shape
        parts.append(batch * (3 * queries * channels**2 + 2 * queries**2 * channels))

    def deformable(module, inputs, output):
        batch, queries, channels = inputs[0].shape
        parts.append(5 * batch * queries * module.num_levels * module.num_points * channels)

    kinds = {
        nn.Conv2d: convolution,
        nn.Linear: linear,
        MultiheadSelfAttention: self_attention,
        MSDeformAttn: deformable,
    }
    hooks = [
        module.register_forward_hook(hook)
        for module in model.modules()
        for kind, hook in kinds.items()
        if isinstance(module, kind)
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, height, width), [flops.blank_sample(height, width)], mode='tensor')
    for hook in hooks:
        hook.remove()
    return sum(parts)


def build(variant):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(tiny_config(variant)).eval()


@pytest.fixture(scope='module')
def detector():
    return build('base')


@pytest.mark.parametrize('variant', ['base', 'two-stage'])
def test_a_detector_costs_the_sum_of_its_parts(variant):
    detector = build(variant)
    counted = flops.model_multiply_adds(detector, 90, 122)
    assert sum(counted.values()) == sum_of_parts(detector, 90, 122)


def test_tensors_without_contents_cost_as_much_as_real_ones(detector):
    def forward():
        samples = [flops.blank_sample(64, 96)]
        return detector(torch.zeros(1, 3, 64, 96), samples, mode='tensor')

    assert flops.model_multiply_adds(detector, 64, 96) == flops.count_multiply_adds(
        forward, detector
    )


def test_counting_leaves_the_model_as_it_was(detector):
    before = [(p.requires_grad, p.clone()) for p in detector.parameters()]
    flops.model_multiply_adds(detector, 64, 96)
    after = list(detector.parameters())
    assert [p.requires_grad for p in after] == [wanted for wanted, _ in before]
    assert all(torch.equal(p, old) for p, (_, old) in zip(after, before))
    assert any(p.requires_grad for p in after)


def test_the_average_weighs_every_picture_alike(detector):
    small, large = (
        sum(flops.model_multiply_adds(detector, *size).values()) for size in ((64, 64), (64, 128))
    )
    mean = flops.average_multiply_adds(detector, [(64, 64), (64, 128), (64, 64)])
    assert mean == pytest.approx((2 * small + large) / 3)


def test_a_model_that_reads_its_own_results_is_counted_in_earnest():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, inputs, samples, mode):
            found = self.layer(inputs).flatten(1)
            return found[found > found.mean().item()]

    counted = flops.model_multiply_adds(Reading(), 6, 7)
    assert counted == {'aten.convolution': 6 * 7 * 3 * 4}


def test_frozen_parameters_count_in_the_whole_only():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    model[0].requires_grad_(False)
    assert flops.count_parameters(model) == (25, 41)


@pytest.mark.parametrize(
    ('picture', 'expected'),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((200, 640), (417, 1333))],
)
def test_pictures_have_a_short_side_of_800_and_a_long_one_of_at_most_1333(picture, expected):
    assert flops.input_size(*picture) == expected


def test_picture_sizes_come_from_annotations_or_from_pictures(tmp_path):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for name, shape in (('a.png', (48, 64)), ('b.jpg', (64, 48)), ('c.png', (32, 32))):
        cv2.imwrite(str(folder / name), np.zeros((*shape, 3), np.uint8))
    (folder / 'readme.txt').write_text('no picture')
    shapes = ((3, 32, 32), (1, 48, 64), (2, 64, 48))  # not in the order of their ids
    images = [dict(id=i, height=height, width=width) for i, height, width in shapes]
    file = tmp_path / 'instances.json'
    file.write_text(json.dumps({'images': images}))
    expected = [(800, 1067), (1067, 800), (800, 800)]
    assert flops.picture_sizes(folder, 100) == flops.picture_sizes(file, 100) == expected
    assert flops.picture_sizes(file, 2) == expected[:2]
    with pytest.raises(ValueError, match='neither a folder nor a file'):
        flops.picture_sizes(tmp_path / 'missing', 100)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='has no pictures'):
        flops.picture_sizes(tmp_path / 'empty', 100)
