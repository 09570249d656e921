"""The recorded outputs of the official model, and our model with the same weights and inputs.

The recordings lie in tests/data/golden: outputs, losses and gradients of the official release
on random weights and features, which `rnd` makes again.
"""

import json
import math
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from builders import criterion_config
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import nn

from ddetr_plugin.checkpoints import Architecture, Source, to_ours
from ddetr_plugin.checkpoints.names.table import module_names, translate
from ddetr_plugin.registry import MODELS

FOLDER = Path(__file__).resolve().parents[1] / 'data' / 'golden'
VARIANTS = ('base', 'refine', 'two_stage', 'single_scale')


class Golden(NamedTuple):
    """One recording, and what reproduces it.

    Attributes:
        record: the json: configuration, losses, gradients.
        arrays: the npz: logits, boxes, matches, ground truth, detections.
        model: ours, with the official weights.
        inputs: (B, 3, H, W); the backbone gives the recorded features whatever they hold.
        samples: B samples with img_shape and ground truth.
        names: official name to ours, without aliases.
        weights: the official state dict, aliases included.
        architecture: what the converter found in it.
    """

    record: dict
    arrays: dict
    model: nn.Module
    inputs: torch.Tensor
    samples: list
    names: dict
    weights: dict
    architecture: Architecture


def rnd(name, shape, seed, scale=1.0) -> torch.Tensor:
    """Float32 numbers that depend on the name and the seed alone."""
    state = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    return torch.from_numpy((state.standard_normal(shape) * scale).astype(np.float32))


def official_weight(name, shape, seed) -> torch.Tensor:
    """The value that the recording gave to an official parameter."""
    scale = 0.05 if len(shape) < 2 else 1 / math.sqrt(math.prod(shape[1:]))
    weight = rnd(name, shape, seed, scale)
    if re.search(r'norm.*\.weight$|^input_proj\.\d\.1\.weight$', name):
        weight += 1
    # Not those under transformer.decoder: so it was recorded.
    if name.startswith('class_embed') and name.endswith('bias'):
        weight -= 2
    if name.endswith('sampling_offsets.bias'):
        weight *= 40
    return weight


class RecordedFeatures(nn.Module):
    """A backbone that returns the same feature maps for every input."""

    def __init__(self, batch_shape, batch_size, channels, strides, seed):
        super().__init__()
        self.maps = [
            rnd(
                f'feat{stride}',
                (batch_size, width, *(math.ceil(side / stride) for side in batch_shape)),
                seed,
            )
            for width, stride in zip(channels, strides)
        ]

    def forward(self, pictures):
        return self.maps


def load_golden(variant: str) -> Golden:
    """Reads a recording and builds our model for it."""
    record = json.loads((FOLDER / f'{variant}.json').read_text())
    with np.load(FOLDER / f'{variant}.npz') as file:
        arrays = dict(file)
    cfg = record['cfg']
    image_shapes = [tuple(size) for size in cfg['img_sizes']]
    batch_shape = tuple(max(side) for side in zip(*image_shapes))
    model = MODELS.build(_config(record, batch_shape))

    weights = {}
    for name, shape, alias in record['state_dict']:
        weights[name] = official_weight(alias or name, shape, record['seed'])
    source = Source(weights, {}, None, [])
    converted = to_ours(source, target=model.state_dict(), classes='keep')
    assert converted.dialect == 'official'
    model.load_state_dict(converted.state, strict=True)
    modules = module_names('official', converted.architecture).ours()
    names = {name: translate(name, modules) for name in record['grads']}

    inputs = torch.zeros(len(image_shapes), 3, *batch_shape)
    samples = []
    for i, (height, width) in enumerate(image_shapes):
        boxes = bbox_cxcywh_to_xyxy(torch.from_numpy(arrays[f'gt_boxes_{i}']))
        sample = DetDataSample(metainfo=dict(img_shape=(height, width)))
        sample.gt_instances = InstanceData(
            bboxes=boxes * torch.tensor([width, height, width, height]),
            labels=torch.from_numpy(arrays[f'gt_labels_{i}']),
        )
        samples.append(sample)
    return Golden(record, arrays, model, inputs, samples, names, weights, converted.architecture)


def _config(record, batch_shape) -> ConfigDict:
    cfg, variant = record['cfg'], record['variant']
    refine, two_stage = variant in ('refine', 'two_stage'), variant == 'two_stage'
    dims = 256
    num_levels = 1 if variant == 'single_scale' else 4
    attn = dict(
        type='ddetr_plugin.MSDeformAttn',
        embed_dims=dims,
        num_heads=8,
        num_levels=num_levels,
        num_points=4,
    )
    layer = dict(
        embed_dims=dims,
        ffn=dict(
            type='ddetr_plugin.FeedForward',
            embed_dims=dims,
            feedforward_channels=cfg['ffn'],
            ffn_drop=0.0,
        ),
        norm=dict(type='LN'),
        dropout=0.0,
    )
    query_head = dict(
        type='ddetr_plugin.LearnedQueryHead', num_queries=cfg['queries'], embed_dims=dims
    )
    if two_stage:
        query_head.update(type='ddetr_plugin.TwoStageHead', num_classes=cfg['classes'])
    return ConfigDict(
        type='ddetr_plugin.DeformableDETR',
        backbone=dict(
            type=RecordedFeatures,
            batch_shape=batch_shape,
            batch_size=len(cfg['img_sizes']),
            channels=record['channels'],
            strides=record['strides'],
            seed=record['seed'],
        ),
        neck=dict(
            type='mmdet.ChannelMapper',
            in_channels=record['channels'],
            kernel_size=1,
            out_channels=dims,
            act_cfg=None,
            norm_cfg=dict(type='GN', num_groups=32),
            bias=True,
            num_outs=num_levels,
        ),
        positional_encoding=dict(
            type='mmdet.SinePositionalEncoding', num_feats=dims // 2, normalize=True, offset=-0.5
        ),
        encoder=dict(
            type='ddetr_plugin.DeformableTransformerEncoder',
            embed_dims=dims,
            num_levels=num_levels,
            num_layers=cfg['enc'],
            layer=dict(
                type='ddetr_plugin.DeformableTransformerEncoderLayer', self_attn=attn, **layer
            ),
        ),
        query_head=query_head,
        decoder=dict(
            type='ddetr_plugin.DeformableTransformerDecoder',
            num_layers=cfg['dec'],
            refine=refine,
            layer=dict(
                type='ddetr_plugin.DeformableTransformerDecoderLayer',
                self_attn=dict(
                    type='ddetr_plugin.MultiheadSelfAttention', embed_dims=dims, num_heads=8
                ),
                cross_attn=attn,
                **layer,
            ),
        ),
        bbox_head=dict(
            type='ddetr_plugin.DeformableDETRHead',
            num_classes=cfg['classes'],
            embed_dims=dims,
            num_layers=cfg['dec'],
            share_branches=not refine,
        ),
        criterion=criterion_config(),
    )
