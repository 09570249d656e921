"""FeatureLevels: masks as interpolation makes them, valid ratios, reference points, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.detectors import DeformableDETR
from mmdet.models.layers import DeformableDetrTransformerEncoder
from torch.nn import functional

from ddetr_plugin.models.feature_levels import FeatureLevels, flatten_levels

CPU = torch.device('cpu')
SIZES = [(13, 21), (7, 11), (4, 6), (1, 2)]
SHAPES = [(97, 161), (100, 90), (33, 167)]
BATCH = (100, 167)
# Sides and cells at which float64, or float32 multiplied in float64, would round elsewhere.
FLOAT32_SIDES = [(14, 10), (15, 9), (26, 22), (45, 33), (45, 39)]


def interpolated_masks(sizes, batch_shape, image_shapes):
    mask = torch.ones(len(image_shapes), *batch_shape)
    for picture, (height, width) in zip(mask, image_shapes):
        picture[:height, :width] = 0
    return [functional.interpolate(mask[None], size=size)[0].bool() for size in sizes]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_masks_equal_nearest_interpolation_of_a_mask_of_pixels(data):
    batch_shape = data.draw(st.tuples(st.integers(1, 1400), st.integers(1, 1400)), 'batch')
    shapes = [tuple(data.draw(st.integers(1, side)) for side in batch_shape) for _ in range(2)]
    # Strides of a backbone, and maps that no stride would give.
    sizes = [tuple(-(-side // stride) for side in batch_shape) for stride in (8, 16, 32, 64)]
    sizes.append(tuple(data.draw(st.integers(1, side)) for side in batch_shape))
    levels = FeatureLevels.from_images(sizes, batch_shape, shapes, CPU)
    wanted = interpolated_masks(sizes, batch_shape, shapes)
    if levels.padding_mask is None:
        assert not any(mask.any() for mask in wanted)
        assert levels.level_masks() == (None,) * 5
        return
    assert torch.equal(levels.padding_mask, torch.cat([m.flatten(1) for m in wanted], 1))
    for ours, mask in zip(levels.level_masks(), wanted):
        assert torch.equal(ours, mask)
    for level, mask in enumerate(wanted):
        ratio = DeformableDETR.get_valid_ratio(mask)
        assert torch.equal(levels.valid_ratios[:, level], ratio)
        cells = torch.stack([(~mask[:, 0]).sum(1), (~mask[:, :, 0]).sum(1)], -1)
        assert torch.equal(levels.valid_sizes[:, level], cells.float())


@pytest.mark.parametrize(('side', 'cells'), FLOAT32_SIDES)
def test_masks_round_as_interpolation_does_in_float32_for_every_size(side, cells):
    shapes = [(length, side) for length in range(1, side + 1)]
    levels = FeatureLevels.from_images([(cells, 1)], (side, side), shapes, CPU)
    (wanted,) = interpolated_masks([(cells, 1)], (side, side), shapes)
    assert torch.equal(levels.level_masks()[0], wanted)


def test_a_batch_without_padding_has_no_mask_and_ratios_of_one():
    levels = FeatureLevels.from_images(SIZES, BATCH, [BATCH, BATCH], CPU)
    assert levels.padding_mask is None
    assert levels.level_masks() == (None,) * 4
    assert torch.equal(levels.valid_ratios, torch.ones(2, 4, 2))


def test_the_same_shapes_are_kept_as_integers_and_as_tensors():
    levels = FeatureLevels.from_images(SIZES, BATCH, SHAPES, CPU)
    assert levels.sizes == tuple(SIZES)
    assert all(type(side) is int for size in levels.sizes for side in size)
    assert levels.tokens_per_level == (273, 77, 24, 2)
    assert torch.equal(levels.spatial_shapes, torch.tensor(SIZES))
    assert torch.equal(levels.level_start_index, torch.tensor([0, 273, 350, 374]))


def test_encoder_reference_points_equal_those_of_mmdet():
    levels = FeatureLevels.from_images(SIZES, BATCH, SHAPES, CPU)
    expected = DeformableDetrTransformerEncoder.get_encoder_reference_points(
        levels.spatial_shapes, levels.valid_ratios, 'cpu'
    )
    torch.testing.assert_close(levels.token_reference_points(), expected, rtol=1e-6, atol=0)


def test_a_token_refers_to_its_own_centre_on_its_own_level():
    levels = FeatureLevels.from_images(SIZES, BATCH, SHAPES, CPU)
    points = levels.token_reference_points()
    row, col = 5, 17
    centre = torch.tensor([(col + 0.5) / 21, (row + 0.5) / 13])
    torch.testing.assert_close(points[:, row * 21 + col, 0], centre.expand(3, 2))
    # On another level: the same place of the picture, whose padding is rounded differently.
    other = centre / levels.valid_ratios[:, 0] * levels.valid_ratios[:, 2]
    torch.testing.assert_close(points[:, row * 21 + col, 2], other)


def test_cell_centres_go_row_by_row():
    levels = FeatureLevels.from_images([(2, 3)], (16, 24), [(16, 24)], CPU)
    centres = [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]
    assert levels.cell_centres()[0].tolist() == centres


@pytest.mark.parametrize('coordinates', [2, 4])
def test_the_corner_of_a_picture_maps_to_the_end_of_its_unpadded_part(coordinates):
    levels = FeatureLevels.from_images(SIZES, BATCH, SHAPES, CPU)
    mapped = levels.to_padded_maps(torch.ones(3, 1, coordinates))
    assert mapped.shape == (3, 1, 4, coordinates)
    for first in range(0, coordinates, 2):
        assert torch.equal(mapped[:, 0, :, first : first + 2], levels.valid_ratios)


@pytest.mark.parametrize('shape', [(0, 10), (10, 0), (101, 10), (10, 168)])
def test_a_picture_that_does_not_fit_its_batch_is_refused_by_number(shape):
    with pytest.raises(ValueError, match=r'img_shape of picture 1 is .* batch of \(100, 167\)'):
        FeatureLevels.from_images(SIZES, BATCH, [BATCH, shape], CPU)


def test_maps_are_flattened_level_by_level_and_row_by_row():
    maps = [torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 1)]
    tokens = flatten_levels(maps)
    assert tokens.shape == (2, 22, 3)
    assert torch.equal(tokens[1, 2 * 5 + 3], maps[0][1, :, 2, 3])
    assert torch.equal(tokens[0, 21], maps[1][0, :, 1, 0])


@pytest.mark.parametrize(('sizes', 'shapes'), [([], [(8, 8)]), ([(2, 2)], [])])
def test_a_batch_without_levels_or_pictures_is_refused(sizes, shapes):
    with pytest.raises(ValueError, match='at least one level and one picture'):
        FeatureLevels.from_images(sizes, (8, 8), shapes, torch.device('cpu'))
