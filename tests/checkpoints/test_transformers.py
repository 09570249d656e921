"""transformers' own DeformableDetr against ours, with weights that went through the bridge."""

import pytest
import torch
from bridge_cases import KINDS, assert_same, bridge_config, empty
from mmengine.config import Config

from ddetr_plugin.checkpoints import describe, export, read_checkpoint, to_ours, write_checkpoint
from ddetr_plugin.checkpoints.parity.other_models import (
    largest_difference,
    predict_with,
    transformers_model,
)
from ddetr_plugin.registry import MODELS

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
    assert (result.dialect, result.architecture.variant) == ('transformers', kind)
    model.load_state_dict(result.state, strict=True)
    logits, boxes = largest_difference(model, theirs)
    assert logits < 1e-5
    assert boxes < 1e-6


def test_their_model_comes_back_bit_for_bit(published, tmp_path):
    kind, theirs, folder = published
    source = read_checkpoint(folder)
    result = to_ours(source)
    back = export(result.state, 'transformers', result.architecture)
    write_checkpoint(tmp_path / 'back.safetensors', back, 'transformers', {})
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
    theirs = transformers_model(bridge_config(kind), export(model.state_dict(), 'transformers'))
    logits, boxes = largest_difference(model, theirs)
    assert logits < 1e-5
    assert boxes < 1e-6


def heads_of_their_own(refine):
    """Our model with a head for each decoder layer."""
    config = Config(dict(model=bridge_config('base')))
    changes = dict(decoder=dict(refine=refine), bbox_head=dict(share_branches=False))
    config.merge_from_dict(dict(model=changes))
    return MODELS.build(config.model)


def test_heads_that_transformers_does_not_tie_do_not_make_a_model_refine(tmp_path):
    """tie_word_embeddings=False, with_box_refine=False: config.json says which it is."""
    torch.manual_seed(5)
    config = transformers_model(bridge_config('base')).config
    config.tie_word_embeddings = False
    theirs = transformers.DeformableDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    theirs.save_pretrained(tmp_path / 'theirs')
    source = read_checkpoint(tmp_path / 'theirs')
    result = to_ours(source)
    assert result.architecture.variant == 'base'
    assert sum('tie_word_embeddings=False' in line for line in describe(result, source)) == 1

    model = heads_of_their_own(refine=False)
    for refines in (None, False):
        result = to_ours(source, target=model.state_dict(), target_refines=refines)
    model.load_state_dict(result.state, strict=True)
    logits, boxes = largest_difference(model, theirs)
    assert logits < 1e-5
    assert boxes < 1e-6

    target = heads_of_their_own(refine=True).state_dict()
    with pytest.raises(ValueError, match='the weights are base, the model is refine'):
        to_ours(source, target=target, target_refines=True)
    with pytest.raises(ValueError, match=r'build it with bbox_head.share_branches=False'):
        to_ours(source, target=empty('base').state_dict(), target_refines=False)

    back = export(result.state, 'transformers', result.architecture)
    heads = ('class_embed', 'bbox_embed', 'model.decoder')
    parts = [
        {n: t for n, t in state.items() if n.startswith(heads)} for state in (back, source.state)
    ]
    assert_same(*parts)
    with pytest.raises(ValueError, match='official shares one head between all decoder layers'):
        export(result.state, 'official', result.architecture)
