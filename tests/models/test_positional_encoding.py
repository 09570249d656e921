"""The positional encoding against mmdet's."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ddetr_plugin.models import SinePositionalEncoding
from ddetr_plugin.models.layers.positional_encoding import KEPT_SIZES

from mmdet.models.layers import SinePositionalEncoding as Theirs  # isort: skip

ARGUMENTS = dict(num_feats=6, normalize=True, offset=-0.5)


@pytest.mark.parametrize('again', [False, True])
def test_maps_without_padding_are_encoded_as_by_mmdet(again):
    ours, theirs = SinePositionalEncoding(**ARGUMENTS), Theirs(**ARGUMENTS)
    for height, width in ((4, 7), (3, 3)):
        x = torch.zeros(2, 5, height, width)
        for _ in range(1 + again):
            encoding = ours(None, x)
        expected = theirs(None, x)
        assert encoding.shape == (1, 12, height, width)
        assert torch.equal(encoding.expand_as(expected), expected)


def test_padded_maps_are_encoded_as_by_mmdet():
    mask = torch.zeros(2, 4, 7, dtype=torch.bool)
    mask[1, 3:], mask[1, :, 5:] = True, True
    x = torch.zeros(2, 5, 4, 7)
    ours = SinePositionalEncoding(**ARGUMENTS)
    ours(None, x)  # what is kept of it must not serve a padded map
    assert torch.equal(ours(mask, x), Theirs(**ARGUMENTS)(mask))


def test_a_size_is_computed_once_and_few_sizes_are_kept(monkeypatch):
    computed = []
    original = Theirs.forward

    def counted(self, mask, input=None):
        computed.append(tuple(input.shape[-2:]))
        return original(self, mask, input)

    monkeypatch.setattr(Theirs, 'forward', counted)
    encoding = SinePositionalEncoding(**ARGUMENTS)
    sizes = [(2, width) for width in range(1, KEPT_SIZES + 1)]
    for size in 2 * sizes:
        encoding(None, torch.zeros(2, 5, *size))
    assert computed == sizes
    encoding(None, torch.zeros(1, 5, 9, 9))  # the first one makes room
    encoding(None, torch.zeros(1, 5, *sizes[1]))
    encoding(None, torch.zeros(1, 5, *sizes[0]))
    assert computed == [*sizes, (9, 9), sizes[0]]


def test_what_was_kept_in_inference_mode_serves_a_training_step():
    encoding = SinePositionalEncoding(**ARGUMENTS)
    x = torch.zeros(1, 12, 4, 4)
    with torch.inference_mode():
        encoding(None, x)
    weight = torch.ones(12, 1, 1, requires_grad=True)
    (x + encoding(None, x) + weight).square().sum().backward()
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize('known', [False, True])
def test_a_model_traced_without_data_neither_takes_nor_leaves_what_is_kept(known):
    encoding = SinePositionalEncoding(**ARGUMENTS)
    x = torch.zeros(1, 12, 4, 4)
    expected = Theirs(**ARGUMENTS)(None, x)
    if known:
        encoding(None, x)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert isinstance(fake + encoding(None, fake), FakeTensor)
    assert torch.equal(encoding(None, x), expected)
