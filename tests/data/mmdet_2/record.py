"""What mmdet 2.28.2 computes: names and shapes of its DETRs, their configs and a few outputs.

It wrote the files beside it. It needs a Python without mmcv 2 and mmdet 3:

    pip download --no-deps mmdet==2.28.2 mmcv==1.7.2      # and unpack both into FOLDER
    PYTHONPATH=FOLDER python tests/data/mmdet_2/record.py

mmcv's compiled extension and torchvision are replaced by empty modules: on a CPU the attention of
mmcv 1.7.2 is plain PyTorch, and nothing else of either is used.
"""

import importlib
import json
import os
import sys
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from recorded_weights import IMAGE_SHAPES, images, random_weights  # noqa: E402

KINDS = {
    'base': ('deformable_detr/deformable_detr_r50_16x2_50e_coco.py', 64),
    'refine': ('deformable_detr/deformable_detr_refine_r50_16x2_50e_coco.py', 64),
    # Its embedding of proposals knows 256 channels only.
    'two-stage': ('deformable_detr/deformable_detr_twostage_refine_r50_16x2_50e_coco.py', 256),
    'detr': ('detr/detr_r50_8x2_150e_coco.py', 64),
}


class Stub(types.ModuleType):
    """A module that has whatever is asked of it."""

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def small(config, channels):
    """The released config of one encoder and two decoder layers, on a ResNet-18."""
    model, head = config.model, config.model.bbox_head
    model.backbone.update(depth=18, init_cfg=None)
    head.num_classes = 5
    head.positional_encoding.num_feats = channels // 2
    if 'neck' in model:
        model.neck.update(in_channels=[128, 256, 512], out_channels=channels)
    head.in_channels = 512
    for name, layers in (('encoder', 1), ('decoder', 2)):
        coder = head.transformer[name]
        coder.num_layers = layers
        layer = coder.transformerlayers
        layer.feedforward_channels = 48
        if channels != 256:
            layer.ffn_cfgs = dict(embed_dims=channels, act_cfg=dict(type='ReLU', inplace=True))
        attentions = layer.attn_cfgs if isinstance(layer.attn_cfgs, list) else [layer.attn_cfgs]
        for attention in attentions:
            attention.embed_dims = channels
            attention.num_heads = 4
            if 'Deformable' in attention.type:
                attention.num_points = 2
    if head.get('as_two_stage'):
        head.transformer.two_stage_num_proposals = 12
    else:
        head.num_query = 12
    return config


def record(kind, config):
    """Names, shapes, the model's config as mmcv writes it into checkpoints, and outputs."""
    from mmdet.models import build_detector

    model = build_detector(config.model).eval()
    first, lines = {}, []
    for name, tensor in model.state_dict().items():
        same = first.setdefault(tensor.data_ptr(), name)
        shape = ','.join(map(str, tensor.shape))
        lines.append(f'{name} {shape}' + (f' {same}' if same != name and shape else ''))
    model.load_state_dict(random_weights(lines))
    batch_shape = tuple(images().shape[2:])
    metas = [dict(img_shape=(*s, 3), batch_input_shape=batch_shape) for s in IMAGE_SHAPES]
    with torch.no_grad():
        outputs = model.bbox_head(model.extract_feat(images()), metas)
    # DETR returns lists of levels, of which it has one.
    logits, boxes = (x[0][-1] if isinstance(x, list) else x[-1] for x in outputs[:2])
    return {
        'written by': f'mmdet {sys.modules["mmdet"].__version__}',
        'config': type(config)({'model': config.model}).pretty_text,
        # Name, shape, and the name of the same tensor before it.
        'names': lines,
        # (2, queries, classes) and (2, queries, 4), of the last layer.
        'logits': ' '.join(f'{x:.6f}' for x in logits.flatten().tolist()),
        'boxes': ' '.join(f'{x:.6f}' for x in boxes.flatten().tolist()),
    }


def main():
    torchvision = Stub('torchvision')
    torchvision.__version__ = '0.15.0'
    torchvision.models = Stub('torchvision.models')
    torchvision.models.__path__ = []
    sys.modules.update({'torchvision': torchvision, 'torchvision.models': torchvision.models})
    sys.modules['mmcv._ext'] = Stub('mmcv._ext')
    mmcv = importlib.import_module('mmcv')
    configs = Path(importlib.import_module('mmdet').__file__).parent / '.mim' / 'configs'
    for kind, (file, channels) in KINDS.items():
        config = small(mmcv.Config.fromfile(os.fspath(configs / file)), channels)
        content = json.dumps(record(kind, config), indent=0)
        (Path(__file__).parent / f'{kind}.json').write_text(content + '\n')


if __name__ == '__main__':
    main()
