"""Images through a config's own test pipeline: what the Runner's test feeds the model."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from ddetr_plugin.config_types import type_class
from ddetr_plugin.datasets import LoadImageChecked, LoadImageResized
from ddetr_plugin.datasets.image_files import (
    UnreadableImageError,
    decode_image,
    decoding_of,
    missing_end,
)
from ddetr_plugin.datasets.wrappers import base_dataset_configs

__all__ = ['LoadedImage', 'PredictionPipeline', 'UnreadableImageError']


class LoadedImage(NamedTuple):
    """An image after the loader of a pipeline.

    Attributes:
        data: what the next transform takes.
        next: number of that transform.
        pixels: (H, W) or (H, W, channels), any dtype, as the loader gave it.
        size: (height, width) of the original image; those of `pixels` differ where the loader
            resizes.
    """

    data: dict
    next: int
    pixels: np.ndarray
    size: tuple[int, int]


class PredictionPipeline:
    """The test pipeline of a config, without annotations, for files and arrays.

    Files reach the model as in the Runner's test: with the bits, channels and size that the
    config's loader gives them. Arrays are taken as if that loader had given them. Of several data
    sets the first one's pipeline is taken. It may be used by several threads.

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
        self._decoding = decoding_of(pipelines[0])
        with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmdet'):
            steps = [step for step in pipelines[0] if not _loads_annotations(step)]
            self.steps = Compose(steps).transforms
        self._loader = next(
            (
                number
                for number, step in enumerate(self.steps)
                if isinstance(step, (LoadImageFromFile, LoadImageChecked, LoadImageResized))
            ),
            0,
        )

    def __call__(self, path: str | os.PathLike, image_id: int = 0) -> tuple[dict, np.ndarray]:
        """A file as the model takes it, and as the loader gave it; errors as `load`."""
        loaded = self.load(path, image_id)
        return self.prepare(loaded), loaded.pixels

    def load(self, path: str | os.PathLike, image_id: int = 0) -> LoadedImage:
        """A file, loaded as in the Runner's test.

        Raises:
            UnreadableImageError: the file is no whole image, or the loader cannot read it.
        """
        return self._load(path, image_id, self.steps)

    def read(self, path: str | os.PathLike) -> np.ndarray:
        """The pixels of a file in its original size, which the loader may resize.

        Raises:
            UnreadableImageError: as `load`.
        """
        if isinstance(self.steps[self._loader], LoadImageResized):
            _require_whole(path)
            return decode_image(Path(path).read_bytes(), self._decoding)
        return self._load(path, 0, self.steps[: self._loader + 1]).pixels

    def take(self, pixels: np.ndarray, image_id: int = 0) -> LoadedImage:
        """An array as if the loader had given it.

        Args:
            pixels: (H, W, 3) uint8, BGR, unless the config loads other images: then of any dtype
                and channels, as its loader gives them.
            image_id: for messages.

        Raises:
            TypeError: it is something else, or empty.
        """
        usual = self._decoding.color_type == 'color'
        if usual and (pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8):
            raise TypeError(
                'an image is an array (H, W, 3) of uint8 from 0 to 255, BGR as OpenCV reads it, '
                f'got {pixels.shape} of {pixels.dtype}'
            )
        if pixels.ndim not in (2, 3) or 0 in pixels.shape:
            raise TypeError(f'an image is an array (H, W, channels), got {pixels.shape}')
        size = (pixels.shape[0], pixels.shape[1])
        data: dict[str, Any] = dict(img_path=None, img_id=image_id, instances=[], img=pixels)
        data.update(img_shape=size, ori_shape=size)
        step = self.steps[self._loader]
        if getattr(getattr(step, 'load', step), 'to_float32', False):
            data['img'] = pixels.astype(np.float32)
        # That one only resizes what is in memory already.
        following = self._loader + (not isinstance(step, LoadImageResized))
        return LoadedImage(data, following, pixels, size)

    def prepare(self, loaded: LoadedImage) -> dict:
        """What the last transform packs; errors are those of the transforms."""
        data = loaded.data
        for step in self.steps[loaded.next :]:
            data = step(data)
            if data is None:
                raise ValueError(f'{type(step).__name__} gave nothing for it')
        return data

    def _load(self, path: str | os.PathLike, image_id: int, steps: list) -> LoadedImage:
        _require_whole(path)
        data = dict(img_path=str(path), img_id=image_id, instances=[])
        for number, step in enumerate(steps, start=1):
            try:
                data = step(data)
            except MemoryError:
                raise
            # What decoders raise depends on the bytes. Later steps' errors are another matter.
            except Exception as error:
                raise UnreadableImageError(_in_a_line(error)) from error
            if data is None:
                raise UnreadableImageError(f'{type(step).__name__} gave nothing for it')
            if data.get('img') is not None:
                pixels = data['img']
                height, width = (int(n) for n in data.get('ori_shape', pixels.shape)[:2])
                return LoadedImage(data, number, pixels, (height, width))
        raise UnreadableImageError('no transform of the test pipeline loads it')


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
