"""A detector whose detections are known: bright rectangles on black, if they are large enough."""

import ddetr_plugin  # noqa: F401  before mmdet

# isort: split
import cv2
import numpy as np
import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.structures import InstanceData

CLASSES = ('green', 'red')
LEAST = 6  # pixels of the network's input


@MODELS.register_module(force=True)
class BlobDetector(BaseDetector):
    """Finds green and red rectangles; misses those that are smaller than LEAST at its input."""

    def __init__(self, bbox_head, with_masks=False, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        self.with_masks = with_masks
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = []

    def predict(self, batch_inputs, batch_data_samples, rescale=True):
        self.batches.append(len(batch_inputs))
        for image, sample in zip(batch_inputs, batch_data_samples):
            height, width = sample.img_shape[:2]
            sample.pred_instances = self.find(image[:, :height, :width], sample)
        return batch_data_samples

    def find(self, image, sample):
        rows, masks = [], []
        for label in range(2):
            bright = (image[label + 1].numpy() > 127).astype(np.uint8)
            count, places, stats, _ = cv2.connectedComponentsWithStats(bright)
            for number in range(1, count):
                x, y, width, height, area = stats[number].tolist()
                if min(width, height) >= LEAST:
                    rows.append((x, y, x + width, y + height, min(0.95, 0.5 + area / 1e5), label))
                    masks.append(places == number)
        rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
        scale = torch.tensor(sample.metainfo.get('scale_factor', (1.0, 1.0)) * 2)
        found = InstanceData(
            bboxes=rows[:, :4] / scale,
            scores=rows[:, 4],
            labels=rows[:, 5].long(),
            queries=torch.arange(len(rows)),
        )
        if self.with_masks:
            size = sample.ori_shape[1::-1]
            whole = [cv2.resize(m.astype(np.uint8), size, interpolation=0) > 0 for m in masks]
            found.masks = torch.tensor(np.array(whole).reshape(-1, *size[::-1]))
        return found

    def loss(self, batch_inputs, batch_data_samples):
        raise NotImplementedError

    def extract_feat(self, batch_inputs):
        raise NotImplementedError

    def _forward(self, batch_inputs, batch_data_samples=None):
        raise NotImplementedError


def blob_config(scale=(256, 256), with_masks=False):
    """A config whose images are resized to fit `scale`."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=scale, keep_ratio=True),
        dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        ),
    ]
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(
                type='BlobDetector',
                bbox_head=dict(num_classes=2),
                with_masks=with_masks,
                data_preprocessor=dict(type='mmdet.DetDataPreprocessor', pad_size_divisor=1),
            ),
            metainfo=dict(classes=CLASSES),
            test_dataloader=dict(dataset=dict(type='CocoDataset', pipeline=pipeline)),
        )
    )


def blob_checkpoint(path):
    """A checkpoint that fits `blob_config`."""
    torch.save(dict(state_dict={'weight': torch.zeros(1)}, meta={}), path)
    return path


def scene(height, width, *blobs):
    """A black image (height, width, 3) uint8 with blobs (x, y, width, height, label)."""
    image = np.zeros((height, width, 3), np.uint8)
    for x, y, w, h, label in blobs:
        image[y : y + h, x : x + w, label + 1] = 255
    return image
