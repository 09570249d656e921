"""Small models whose weights the tests of the bridge move about."""

import torch
from builders import VARIANTS, build, tiny_config
from mmengine.config import Config

from ddetr_plugin.checkpoints import Source
from ddetr_plugin.registry import MODELS

SINGLE_SCALE = dict(
    backbone=dict(out_indices=(3,)),
    neck=dict(in_channels=[512], num_outs=1),
    encoder=dict(num_levels=1, layer=dict(self_attn=dict(num_levels=1))),
    decoder=dict(layer=dict(cross_attn=dict(num_levels=1))),
)
KINDS = (*VARIANTS, 'single-scale')


def bridge_config(kind, classes=5, **changes):
    """The config of one of `KINDS`, of 64 channels (256 where mmdet can do no other)."""
    config = tiny_config(
        kind if kind in VARIANTS else 'base',
        embed_dims=256 if kind == 'two-stage' else 64,
        bbox_head=dict(num_classes=classes),
        # What transformers builds in.
        neck=dict(norm_cfg=dict(num_groups=32)),
    )
    if kind == 'two-stage':
        config.query_head.num_classes = classes
    config = Config(dict(model=config))
    if kind == 'single-scale':
        config.merge_from_dict(dict(model=SINGLE_SCALE))
    config.merge_from_dict(dict(model=changes))
    return config.model


def ours(kind, classes=5, seed=0):
    """A model with random weights everywhere."""
    return build(bridge_config(kind, classes), seed)


def empty(kind, classes=5):
    """A model as it is built, to take weights."""
    return MODELS.build(bridge_config(kind, classes))


def source(state, **meta):
    return Source(dict(state), meta, None, [])


def assert_same(one, other, ignore=()):
    """The same names and bits."""
    names = [{n for n in state if not n.endswith(tuple(ignore))} for state in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        assert torch.equal(one[name], other[name]), name
