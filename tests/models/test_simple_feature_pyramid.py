"""SimpleFeaturePyramid: sizes, and its numbers from scalar loops."""

import pytest
import torch
from rounding import assert_as_near_as_rounding_allows
from torch import nn

from ddetr_plugin.models.necks.simple_feature_pyramid import ChannelLayerNorm
from ddetr_plugin.registry import MODELS


def build(in_channels=8, out_channels=6, **options):
    return MODELS.build(
        dict(
            type='ddetr_plugin.SimpleFeaturePyramid',
            in_channels=in_channels,
            out_channels=out_channels,
            **options,
        )
    )


@pytest.mark.parametrize('size', [(4, 8), (5, 7), (1, 1)])
def test_maps_have_the_size_of_their_scales_rounded_up(size):
    maps = build(scales=(4, 2, 1, 0.5, 0.25))([torch.randn(2, 8, *size)])
    assert [m.shape[:2] for m in maps] == [(2, 6)] * 5
    for m, (times, over) in zip(maps, ((4, 1), (2, 1), (1, 1), (1, 2), (1, 4))):
        assert m.shape[2:] == tuple(-(-side * times // over) for side in size)


def test_the_stages_are_those_of_vitdet():
    def kinds(branch):
        return [
            (type(m).__name__, getattr(m, 'in_channels', None), getattr(m, 'out_channels', None))
            for m in branch
        ]

    last = [
        ('ChannelLayerNorm', None, None),
        ('Conv2d', 6, 6),
        ('ChannelLayerNorm', None, None),
    ]
    four, two, one, half = build(scales=(4, 2, 1, 0.5)).convs
    assert kinds(four) == [
        ('ConvTranspose2d', 8, 4),
        ('ChannelLayerNorm', None, None),
        ('GELU', None, None),
        ('ConvTranspose2d', 4, 2),
        ('Conv2d', 2, 6),
        *last,
    ]
    assert kinds(two) == [('ConvTranspose2d', 8, 4), ('Conv2d', 4, 6), *last]
    assert kinds(one) == [('Conv2d', 8, 6), *last]
    assert kinds(half) == [('MaxPool2d', None, None), ('Conv2d', 8, 6), *last]


def test_a_cell_is_the_deconvolution_or_the_maximum_of_the_cells_it_comes_from():
    pyramid = build(scales=(2, 0.5, 0.25)).double()
    x = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    up, half, quarter = (branch[0] for branch in pyramid.convs)
    enlarged = up(x)
    for row, col in ((0, 0), (3, 7), (9, 11), (4, 2)):
        kernel = up.weight[:, :, row % 2, col % 2]
        wanted = x[0, :, row // 2, col // 2] @ kernel + up.bias
        torch.testing.assert_close(enlarged[0, :, row, col], wanted)
    for pool, factor in ((half, 2), (quarter, 4)):
        pooled = pool(x)
        for row in range(pooled.shape[2]):
            for col in range(pooled.shape[3]):
                window = x[0, :, row * factor : (row + 1) * factor, col * factor :][..., :factor]
                assert torch.equal(pooled[0, :, row, col], window.amax(dim=(1, 2)))


def test_the_norm_is_over_the_channels_of_each_cell():
    norm = ChannelLayerNorm(8, eps=1e-6)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 8, 3, 5)
    cell = x[1, :, 2, 4]
    wanted = (cell - cell.mean()) / (cell.var(correction=0) + 1e-6).sqrt() * norm.weight
    torch.testing.assert_close(norm(x)[1, :, 2, 4], wanted)


def test_levels_are_independent_and_pictures_are_too():
    pyramid = build()
    x = torch.randn(2, 8, 6, 4)
    together = pyramid([x])
    for level, branch in enumerate(pyramid.convs):
        torch.testing.assert_close(together[level][1:], branch(x[1:]))


def test_it_compiles_and_runs_in_bfloat16():
    pyramid = build()
    x = torch.randn(1, 8, 5, 4)
    wanted = pyramid([x])
    torch.compiler.reset()
    compiled = torch.compile(pyramid, fullgraph=True, dynamic=True, backend='eager')
    for found, m in zip(compiled([x]), wanted):
        torch.testing.assert_close(found, m)
    with torch.autocast('cpu', torch.bfloat16):
        low = pyramid([x])
    low, exact = ({str(i): m.detach() for i, m in enumerate(maps)} for maps in (low, wanted))
    assert_as_near_as_rounding_allows(
        low,
        exact,
        lambda: {str(i): m for i, m in enumerate(pyramid([x]))},
        pyramid,
        torch.bfloat16,
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(scales=()), 'scales must be powers of 2, at least one'),
        (dict(scales=(1, 3)), r'scales must be powers of 2, at least one, got \(1, 3\)'),
        (dict(scales=(0,)), 'scales must be powers of 2'),
        (dict(in_channels=6, scales=(4,)), 'in_channels must be a multiple of 4 for a scale of 4'),
        (dict(out_channels=0), 'out_channels must be positive'),
    ],
)
def test_a_bad_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize('maps', [[], [torch.zeros(1, 8, 2, 2)] * 2, [torch.zeros(1, 4, 2, 2)]])
def test_anything_but_one_map_of_its_channels_is_refused(maps):
    with pytest.raises(ValueError, match=r'maps must be one map \(B, 8, H, W\)'):
        build()(maps)
