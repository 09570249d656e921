"""Reference points that the encoder keeps from batch to batch."""

import pytest
import torch
from builders import tiny_config
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ddetr_plugin.models import FeatureLevels
from ddetr_plugin.models.layers.encoder import KEPT_SHAPES
from ddetr_plugin.registry import MODELS

SIZES = [(8, 12), (4, 6), (2, 3), (1, 2)]
PADDED = [(64, 96), (40, 72)]


def levels_of(image_shapes, batch_shape=(64, 96), sizes=SIZES):
    return FeatureLevels.from_images(sizes, batch_shape, image_shapes, torch.device('cpu'))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return MODELS.build(tiny_config().encoder).eval()


@pytest.fixture
def computed(monkeypatch):
    """Numbers of pictures whose reference points were computed."""
    pictures = []
    original = FeatureLevels.token_reference_points

    def counted(levels):
        pictures.append(len(levels.valid_ratios))
        return original(levels)

    monkeypatch.setattr(FeatureLevels, 'token_reference_points', counted)
    return pictures


def encode(encoder, levels):
    torch.manual_seed(len(levels.valid_ratios))
    tokens = torch.randn(len(levels.valid_ratios), sum(levels.tokens_per_level), 32)
    return encoder(tokens, torch.zeros_like(tokens), levels)


def test_reference_points_of_unpadded_batches_are_computed_once_per_shape(encoder, computed):
    one, two = levels_of([(64, 96)]), levels_of(2 * [(64, 96)])
    wide = levels_of([(96, 64)], (96, 64), [(w, h) for h, w in SIZES])
    first = [encode(encoder, levels) for levels in (one, two, wide)]
    again = [encode(encoder, levels) for levels in (one, two, wide)]
    assert computed == [1, 2, 1]
    for a, b in zip(first, again):
        assert torch.equal(a, b)


def test_padded_batches_compute_their_own(encoder, computed):
    encode(encoder, levels_of(2 * [(64, 96)]))
    padded = encode(encoder, levels_of(PADDED))
    assert computed == [2, 2]
    fresh = MODELS.build(tiny_config().encoder).eval()
    fresh.load_state_dict(encoder.state_dict())
    assert torch.equal(padded, encode(fresh, levels_of(PADDED)))


def test_few_shapes_are_kept_and_the_one_not_asked_for_the_longest_goes(encoder, computed):
    shapes = [levels_of(number * [(64, 96)]) for number in range(1, KEPT_SHAPES + 2)]
    for levels in (*shapes[:KEPT_SHAPES], shapes[0], shapes[-1], shapes[0], shapes[1]):
        encode(encoder, levels)
    assert computed == [*range(1, KEPT_SHAPES + 2), 2]


def test_what_was_kept_in_inference_mode_serves_a_training_step(encoder):
    levels = levels_of([(64, 96)])
    with torch.inference_mode():
        encode(encoder, levels)
    encode(encoder.train(), levels).square().sum().backward()
    assert encoder.layers[0].self_attn.sampling_offsets.weight.grad.isfinite().all()


def test_a_model_traced_without_data_leaves_nothing_behind(encoder):
    levels = levels_of([(64, 96)])
    tokens = torch.zeros(1, sum(levels.tokens_per_level), 32)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_levels = levels._replace(
            valid_ratios=mode.from_tensor(levels.valid_ratios),
            spatial_shapes=mode.from_tensor(levels.spatial_shapes),
        )
        assert isinstance(encoder._reference_points(fake_levels), FakeTensor)
    assert type(encode(encoder, levels)) is type(tokens)
