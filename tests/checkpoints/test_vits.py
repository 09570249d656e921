"""Weights of vision transformers: transformers' model and files, and files named as in timm."""

import re

import pytest
import torch
from builders import initialise

from ddetr_plugin.registry import MODELS

SIZES = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=40)
SIZES.update(patch_size=8, image_size=32)


def build(**changes):
    model = MODELS.build(dict(type='ddetr_plugin.VisionTransformer') | SIZES | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    """A small random model of transformers with a classifier, and the folder it was saved in."""
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        patch_size=8,
        image_size=32,
    )
    torch.manual_seed(1)
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = tmp_path_factory.mktemp('vit')
    model.save_pretrained(folder)
    model.vit.save_pretrained(folder / 'headless')
    return model.vit, folder


@pytest.mark.parametrize('place', ['', 'model.safetensors', 'headless'])
@pytest.mark.parametrize('size', [(32, 32), (40, 72), (24, 16), (56, 56)])
def test_a_folder_of_transformers_gives_the_map_of_its_model_at_every_size(library, size, place):
    theirs, folder = library
    init_cfg = dict(type='Pretrained', checkpoint=str(folder / place))
    ours = build(norm_eps=1e-12, init_cfg=init_cfg)
    initialise(ours)
    pictures = torch.randn(2, 3, *size)
    with torch.no_grad():
        out = theirs(pictures, interpolate_pos_encoding=size != (32, 32))
        wanted = out.last_hidden_state[:, 1:]
        found = ours(pictures)[0].flatten(2).mT
    # Maps of size one; sums in another order.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('nested', [False, True])
def test_a_file_named_as_timms_fills_every_parameter(tmp_path, nested):
    theirs = build()
    state = theirs.state_dict() | {'head.weight': torch.zeros(5, 24), 'head.bias': torch.zeros(5)}
    assert 'blocks.1.mlp.fc2.weight' in state and 'blocks.0.attn.qkv.bias' in state
    path = tmp_path / 'deit.pth'
    torch.save({'model': state, 'epoch': 3} if nested else state, path)
    ours = build(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    initialise(ours)
    assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in ours.state_dict().items())


def without(name):
    def change(state):
        del state[name]

    return change


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (without('blocks.1.attn.proj.bias'), 'missing: blocks.1.attn.proj.bias'),
        (lambda s: s.update({'blocks.0.ls1.gamma': torch.ones(24)}), 'left over: blocks.0.ls1'),
        (
            lambda s: s.update(pos_embed=torch.zeros(1, 37, 24)),
            r'pos_embed is \(1, 37, 24\), expected \(1, 17, 24\) (set image_size=48)',
        ),
        (
            lambda s: s.update(pos_embed=torch.zeros(1, 18, 24)),
            r'expected \(1, 17, 24\) (the class token and a square of positions)',
        ),
    ],
)
def test_weights_that_do_not_fit_stop_the_initialisation(tmp_path, change, message):
    state = build().state_dict()
    change(state)
    path = tmp_path / 'other.pth'
    torch.save(state, path)
    model = build(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(RuntimeError, match=re.escape(message.replace('\\', ''))):
        initialise(model)


def test_a_model_saves_and_loads_its_own_weights_alone_and_inside_another():
    first, second = (torch.nn.ModuleDict({'backbone': build()}) for _ in range(2))
    second.load_state_dict(first.state_dict())
    build().load_state_dict(first['backbone'].state_dict())
    pictures = torch.randn(1, 3, 24, 24)
    assert torch.equal(first['backbone'](pictures)[0], second['backbone'](pictures)[0])
