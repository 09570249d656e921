"""Image files through a config's own test pipeline: what `tools/test.py` feeds the model."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmcv.transforms import LoadAnnotations
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.structures import InstanceData

from ddetr_plugin.config_types import type_class
from ddetr_plugin.datasets.image_files import UnreadableImageError, decode_image, missing_end
from ddetr_plugin.datasets.wrappers import base_dataset_configs
from ddetr_plugin.evaluation import require_finite

__all__ = ['Detections', 'PredictionPipeline', 'UnreadableImageError', 'detect']


class Detections(NamedTuple):
    """What was found on one image.

    Attributes:
        instances: `bboxes` (n, 4) as (x1, y1, x2, y2) in pixels of the loaded image, not
            clipped; `scores` (n,), `labels` (n,), and what else the head gives; on the CPU.
        size: (height, width) of the loaded image in pixels.
        drawable: (height, width, 3) uint8, BGR: the image to draw on.
    """

    instances: InstanceData
    size: tuple[int, int]
    drawable: np.ndarray


class PredictionPipeline:
    """The test pipeline of a config, from its own loader on, without annotations.

    Images reach the model as in `tools/test.py`: with the bits, channels and size that the
    config's loader gives them. Of several data sets the first one's pipeline is taken.

    Args:
        config: with `test_dataloader`, whose data set may be wrapped.

    Raises:
        ValueError: the config has no test pipeline.
    """

    def __init__(self, config: Config):
        loader = config.get('test_dataloader') or {}
        pipelines = [
            dataset['pipeline']
            for dataset in base_dataset_configs(loader.get('dataset'))
            if dataset.get('pipeline')
        ]
        if not pipelines:
            raise ValueError(
                'the config has no test_dataloader with a pipeline, which prepares the images; '
                'give the config that the training left in its work folder'
            )
        self.steps = Compose([step for step in pipelines[0] if not _loads_annotations(step)])

    def __call__(self, path: str | os.PathLike, image_id: int = 0) -> tuple[dict, np.ndarray]:
        """An image as the model takes it, and as the loader gave it.

        Returns:
            (what the last transform packs; (H, W) or (H, W, channels), any dtype).

        Raises:
            UnreadableImageError: the file is no whole image, or the loader cannot read it.
        """
        _require_whole(path)
        data = dict(img_path=str(path), img_id=image_id, instances=[])
        loaded = None
        for step in self.steps.transforms:
            try:
                data = step(data)
            except MemoryError:
                raise
            except Exception as error:
                # What decoders raise depends on the bytes. Later steps' errors are another matter.
                if loaded is not None:
                    raise
                raise UnreadableImageError(_in_a_line(error)) from error
            if data is None:
                raise UnreadableImageError(f'{type(step).__name__} gave nothing for it')
            if loaded is None and data.get('img') is not None:
                loaded = data['img']
        return data, loaded


def _loads_annotations(step: dict) -> bool:
    kind = type_class(step, TRANSFORMS)
    return isinstance(kind, type) and issubclass(kind, LoadAnnotations)


def _require_whole(path: str | os.PathLike) -> None:
    try:
        reason = missing_end(path)
    except OSError as error:
        reason = str(error)
    if reason is not None:
        raise UnreadableImageError(reason)


def _in_a_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:300] or type(error).__name__


def detect(
    model: torch.nn.Module,
    pipeline: PredictionPipeline,
    path: str | os.PathLike,
    image_id: int = 0,
) -> Detections:
    """Detections of a model on one image file.

    Raises:
        UnreadableImageError: the file is no whole image that the pipeline reads.
        ValueError: the model cannot take what the pipeline makes of it; the message says why.
        NotFiniteError: a box or a score is NaN or infinite; the message names the query.
    """
    packed, loaded = pipeline(path, image_id)
    data = pseudo_collate([packed])
    with torch.no_grad():
        sample = model.test_step(data)[0]
    require_finite(sample.pred_instances, str(path))
    size = tuple(int(side) for side in sample.metainfo.get('ori_shape', loaded.shape)[:2])
    return Detections(sample.pred_instances.cpu(), size, _drawable(loaded, size, path))


def _drawable(loaded: np.ndarray, size: tuple[int, int], path: str | os.PathLike) -> np.ndarray:
    """(H, W, 3) uint8, BGR, to draw on: what the loader gave, as an eye can see it."""
    if loaded.shape[:2] != size:  # The loader has resized it already.
        with suppress(UnreadableImageError):
            loaded = decode_image(Path(path).read_bytes())
    image = np.atleast_3d(loaded)
    channels = image.shape[2]
    image = image[..., :3] if channels >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if image.dtype != np.uint8:
        image = image.astype(np.float64)
        low, high = np.nanmin(image), np.nanmax(image)
        if low < 0 or high > 255:
            # Sensors of 12 bits leave most of 16 unused: dividing by 256 would draw black.
            image = (image - low) * (255 / max(high - low, 1e-9))
        image = np.nan_to_num(image).round().astype(np.uint8)
    if image.shape[:2] != size:
        image = cv2.resize(image, size[::-1])
    return np.ascontiguousarray(image)
