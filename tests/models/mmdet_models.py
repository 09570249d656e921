"""mmdet's own models on mmcv's attention, small, from the configs that mmdet installs."""

import sys
from pathlib import Path

import mmdet
import torch
from builders import batch, initialise
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from torch import nn

NUM_CLASSES = 5
CLASS_NAMES = ('one', 'two', 'three', 'four', 'five')
_ENCODER = dict(num_layers=1, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=64)))
_DECODER = dict(num_layers=2, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=64)))
# Zero dropout, so that two runs differ in nothing but the operator.
_DETR = dict(
    num_queries=12,
    backbone=dict(depth=18, init_cfg=None),
    neck=dict(in_channels=[128, 256, 512]),
    encoder=_ENCODER,
    decoder=_DECODER,
    bbox_head=dict(num_classes=NUM_CLASSES),
    test_cfg=dict(max_per_img=10),
)
_NO_DROPOUT = dict(
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(dropout=0.0), ffn_cfg=dict(ffn_drop=0.0))),
    decoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(dropout=0.0),
            cross_attn_cfg=dict(dropout=0.0),
            ffn_cfg=dict(ffn_drop=0.0),
        )
    ),
)
_FEW_DENOISING = dict(dn_cfg=dict(group_cfg=dict(num_dn_queries=6)))

# name: (config of mmdet, changes one after another)
CONFIGS = {
    'Deformable DETR': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        [_DETR, _NO_DROPOUT],
    ),
    'DINO': ('dino/dino-4scale_r50_8xb2-12e_coco.py', [_DETR, _FEW_DENOISING]),
    'DDQ': ('ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py', [_DETR, _FEW_DENOISING]),
    'Mask2Former': (
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        [
            dict(
                backbone=dict(depth=18, init_cfg=None),
                panoptic_head=dict(
                    in_channels=[64, 128, 256, 512],
                    num_things_classes=NUM_CLASSES,
                    num_queries=12,
                    loss_cls=dict(class_weight=[1.0] * NUM_CLASSES + [0.1]),
                    pixel_decoder=dict(encoder=_ENCODER),
                    transformer_decoder=_DECODER,
                ),
                panoptic_fusion_head=dict(num_things_classes=NUM_CLASSES),
                data_preprocessor=dict(batch_augments=None),
                # No points where the masks are least certain: rounding decides between two that are
                # nearly as uncertain, and one of them changes a loss by half a percent.
                train_cfg=dict(num_points=100, importance_sample_ratio=0.0),
                test_cfg=dict(max_per_image=10),
            )
        ],
    ),
    'Grounding DINO': (
        'grounding_dino/grounding_dino_swin-t_finetune_16xb2_1x_coco.py',
        [
            dict(
                backbone=dict(
                    _delete_=True, type='ResNet', depth=18, out_indices=(1, 2, 3), norm_eval=True
                ),
                language_model=dict(_delete_=True, type='WordEmbeddings'),
            ),
            _DETR,
            _FEW_DENOISING,
            dict(encoder=dict(num_cp=0)),
        ],
    ),
}


class _Words(dict):
    """What a tokenizer returns: one token per word, between a first and a last special one."""

    def __init__(self, captions):
        (caption,) = set(captions)
        self._starts = []
        position = 0
        for word in caption.split():
            position = caption.index(word, position)
            self._starts.append(position)
        words = [2 + sum(word.encode()) % 29 for word in caption.split()]
        ids = torch.tensor([[0, *words, 1]]).repeat(len(captions), 1)
        super().__init__(input_ids=ids)

    def char_to_token(self, position):
        return sum(start <= position for start in self._starts)


class _Body(nn.Module):
    language_dim = 16


@MODELS.register_module()
class WordEmbeddings(nn.Module):
    """Stands in for BERT, whose package and weights mmdet does not install."""

    pad_to_max = False

    def __init__(self):
        super().__init__()
        self.language_backbone = nn.ModuleDict({'body': _Body()})
        self.language_backbone.body = self.language_backbone['body']
        self.embedding = nn.Embedding(31, _Body.language_dim)

    def tokenizer(self, captions, **_):
        return _Words(captions)

    def forward(self, captions):
        ids = _Words(captions)['input_ids']
        tokens = ids.shape[1]
        return {
            'embedded': self.embedding(ids),
            'masks': torch.eye(tokens).bool().expand(len(ids), -1, -1),
            'position_ids': torch.arange(tokens).expand(len(ids), -1),
            'text_token_mask': torch.ones_like(ids, dtype=torch.bool),
        }


def tiny_mmdet_config(name) -> ConfigDict:
    """A config of mmdet with few and narrow layers on a ResNet-18."""
    path, changes = CONFIGS[name]
    config = Config.fromfile(Path(mmdet.__file__).parent / '.mim' / 'configs' / path)
    for change in changes:
        config.merge_from_dict(dict(model=change))
    # Built by mmengine, which knows the name only with its scope.
    config.model.data_preprocessor.type = 'mmdet.DetDataPreprocessor'
    return config.model


def build_tiny(name, seed=0) -> nn.Module:
    """The model with noise on every parameter, so that no offset and no weight stays zero."""
    torch.manual_seed(seed)
    model = MODELS.build(tiny_mmdet_config(name))
    initialise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def tiny_batch(name):
    """Two padded pictures with boxes and, for Mask2Former, masks; a prompt for Grounding DINO."""
    inputs, samples = batch(num_classes=NUM_CLASSES)
    for sample in samples:
        sample.set_metainfo(dict(text=CLASS_NAMES, custom_entities=True))
        add_masks(sample, inputs.shape[-2:])
    return inputs, samples


def add_masks(sample: DetDataSample, size) -> None:
    """Fills the boxes of a sample, on a map of `size` (H, W)."""
    boxes = sample.gt_instances.bboxes
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, box in zip(masks, boxes.round().int().tolist()):
        mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = 1
    sample.gt_instances.masks = BitmapMasks(masks.numpy(), *size)


def supply_nms(monkeypatch) -> None:
    """Gives the stand-in for mmcv's extension the op that DDQ needs; a real one stays."""
    extension = sys.modules['mmcv._ext']
    if getattr(extension, '__file__', None) is None:
        monkeypatch.setattr(extension, 'nms', _nms)


def _nms(boxes, scores, iou_threshold, offset):
    """Greedy suppression, as the compiled op does it."""
    kept = []
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(-1)
    order = scores.argsort(descending=True).tolist()
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for index in order:
        if not alive[index]:
            continue
        kept.append(index)
        low = torch.maximum(boxes[:, :2], boxes[index, :2])
        high = torch.minimum(boxes[:, 2:], boxes[index, 2:])
        common = (high - low + offset).clamp(min=0).prod(-1)
        alive &= common / (areas + areas[index] - common) <= iou_threshold
    return torch.tensor(kept, dtype=torch.int64)
