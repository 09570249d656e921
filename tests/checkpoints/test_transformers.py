"""transformers' own DeformableDetr against ours, with weights that went through the bridge."""

import pytest
import torch
from bridge_cases import KINDS, assert_same, bridge_config, empty

from ddetr_plugin.checkpoints import export, read_checkpoint, to_ours, write_checkpoint
from ddetr_plugin.checkpoints.libraries import (
    largest_difference,
    predict_with,
    transformers_model,
)

transformers = pytest.importorskip('transformers', reason='transformers is not installed')
pytest.importorskip('safetensors', reason='safetensors is not installed')


@pytest.fixture(params=KINDS)
def published(request, tmp_path):
    """(kind, transformers' model with random weights, the folder it was saved to)."""
    torch.manual_seed(5)
    # Class names: with a number of classes alone, transformers would name them LABEL_0, ...
    model = transformers_model(bridge_config(request.param)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(tmp_path / 'theirs')
    return request.param, model, tmp_path / 'theirs'


def test_our_model_computes_what_theirs_does(published):
    kind, theirs, folder = published
    model = empty(kind)
    result = to_ours(read_checkpoint(folder), target=model.state_dict())
    assert (result.dialect, result.layout.variant) == ('hf', kind)
    model.load_state_dict(result.state, strict=True)
    logits, boxes = largest_difference(model, theirs)
    assert logits < 1e-5
    assert boxes < 1e-6


def test_their_model_comes_back_bit_for_bit(published, tmp_path):
    kind, theirs, folder = published
    source = read_checkpoint(folder)
    result = to_ours(source)
    back = export(result.state, 'hf', result.layout)
    write_checkpoint(tmp_path / 'back.safetensors', back, 'hf', {})
    again = transformers_model(
        bridge_config(kind), read_checkpoint(tmp_path / 'back.safetensors').state
    )
    ignore = ('num_batches_tracked',)
    assert_same(again.state_dict(), theirs.state_dict(), ignore)
    inputs = torch.randn(1, 3, 96, 128)
    for one, other in zip(*(predict_with(m, inputs, [(96, 128)]) for m in (again, theirs))):
        assert torch.equal(one, other)


def test_our_weights_work_in_their_model(published):
    """The other way round, aliases and ties as transformers loads them."""
    kind, _, _ = published
    torch.manual_seed(6)
    model = empty(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    theirs = transformers_model(bridge_config(kind), export(model.state_dict(), 'hf'))
    logits, boxes = largest_difference(model, theirs)
    assert logits < 1e-5
    assert boxes < 1e-6
