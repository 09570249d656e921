"""The detector in Python: images in, detections out, as the Runner's test would find them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.structures import InstanceData

from ddetr_plugin.apis.config_reading import load_config, require_checkpoint
from ddetr_plugin.apis.detections import Detections
from ddetr_plugin.apis.image_pipeline import PredictionPipeline
from ddetr_plugin.apis.loaded_model import category_ids, class_names, find_device, load_model
from ddetr_plugin.apis.prediction import (
    IMAGE_ERRORS,
    MODEL_ERRORS,
    PredictionSettings,
    describe_error,
    fill_in,
)
from ddetr_plugin.apis.read_ahead import batched, read_ahead
from ddetr_plugin.apis.sources import ImageSource, find_sources, pixels_of
from ddetr_plugin.apis.tiles import make_tiles, merge_detections
from ddetr_plugin.apis.viewable import viewable
from ddetr_plugin.datasets import UnreadableImageError
from ddetr_plugin.evaluation import require_finite

__all__ = ['Detector']


class _Job(NamedTuple):
    """An image on its way: `record` with nothing found yet, or with an error.

    `packed` is what the model takes of the whole image, or `pixels` what is cut into tiles.
    """

    record: Detections
    packed: dict | None = None
    pixels: np.ndarray | None = None


class Detector:
    """Finds objects on images, as the Runner's test of the same config and checkpoint finds them.

    Args:
        config: path, name of a config of this package such as
            'deformable-detr-refine-twostage_r50_16xb2-50e_coco', or a Config, which stays as it is.
            Of a training: the one that it left in its work folder.
        checkpoint: whatever `load_from` takes: a file of this package, mmdet, the official
            release or detrex, .safetensors, a folder of transformers, or a URL.
        device: such as 'cuda:1'; by default the GPU if there is one, else the CPU.

    Attributes:
        model: the network, in evaluation mode.
        classes: names of its classes.
        category_ids: of each class, from the config's annotation files if those are there, else 1,
            2, ...
        device: where the model is.

    Raises:
        OSError: a file does not exist.
        ValueError: config, weights and classes do not fit each other, or the device is none.
        MissingMMCVOpError: the model needs full mmcv, and this is mmcv-lite.
    """

    def __init__(
        self,
        config: str | os.PathLike | Config,
        checkpoint: str | os.PathLike,
        device: str | torch.device | None = None,
    ):
        config = load_config(config)
        require_checkpoint(checkpoint)
        model, classes = load_model(config, checkpoint, find_device(device))
        self._set(model, config, classes)

    @classmethod
    def from_model(
        cls, model: BaseModel, config: Config, classes: Sequence[str] | None = None
    ) -> 'Detector':
        """A detector of a model that is in memory, such as a Runner's; it is put in evaluation.

        Args:
            model: of any detector of mmdet's kind.
            config: of which its pipeline and, without `classes`, the names are taken.
            classes: names.
        """
        detector = cls.__new__(cls)
        detector._set(model.eval(), config, classes or class_names({}, config))
        return detector

    def _set(self, model: BaseModel, config: Config, classes: Sequence[str]) -> None:
        self.model = model
        self.classes = tuple(classes)
        self.category_ids = category_ids(config, classes)
        self.device = next(model.parameters()).device
        self._pipeline = PredictionPipeline(config)

    def __call__(
        self,
        images,
        score_thr: float = 0.3,
        batch_size: int = 1,
        num_workers: int = 0,
        one_class_per_box: bool = False,
        nms: float | None = None,
        tiles: int | None = None,
        overlap: float = 0.2,
        recursive: bool = False,
        keep_images: bool = False,
    ) -> Iterator[Detections]:
        """Detect objects on images, one after another.

        An iterator always, also of one image; see `one`. It takes images as it goes, and holds
        no more than `batch_size` + `num_workers` + 1 of them; an array that it was given must stay
        as it is until its result has come. An image that cannot be read or predicted ends
        nothing: its result has an `error` and no detections.

        Args:
            images: a path, glob, folder or video; an array (H, W, 3) of BGR uint8 as OpenCV reads
                it; a PIL image; or an iterable of these, such as a list of paths or a generator of
                frames.
            score_thr: 0..1; detections with lower scores are left out.
            batch_size: images that the model sees at once. Those of one batch are padded to one
                size, which changes numbers in their last digits.
            num_workers: threads that read and resize images while the model is at work.
            one_class_per_box: of the classes that one query found, keep the best alone.
            nms: IoU; of two boxes of one class that overlap by more, keep the better one. None
                keeps all, as evaluation does.
            tiles: side in pixels of the square tiles in which larger images are looked at, besides
                as a whole. None looks at whole images only.
            overlap: 0 to below 1, of each tile with the next one. An object is best found if the
                overlap is as large as it is.
            recursive: look into the folders below a folder, too.
            keep_images: leave the image in the result, for drawing.

        Returns:
            Iterator of one `Detections` for each image, in their order.

        Raises:
            FileNotFoundError: the one path that was given is no file, folder or glob.
            TypeError: something is no image, or an array of another kind.
            ValueError: an option is out of range.
            NotFiniteError: a box or a score is NaN or infinite, when its turn comes.
        """
        settings = PredictionSettings(
            score_thr, batch_size, num_workers, one_class_per_box, nms, tiles, overlap, keep_images
        )
        return self._predict(find_sources(images, recursive), settings)

    def one(self, image, **options) -> Detections:
        """The detections on one image; arguments as for calling the detector.

        Raises:
            ValueError: it cannot be read or predicted, or it is several images.
        """
        results = self(image, **options)
        found = next(results, None)
        if found is None or next(results, None) is not None:
            raise ValueError('one() takes one image; call the detector itself for more or fewer')
        if found.error is not None:
            raise ValueError(f'{found.title}: {found.error}')
        return found

    def _predict(
        self, sources: Iterator[ImageSource], settings: PredictionSettings
    ) -> Iterator[Detections]:
        jobs = read_ahead(
            lambda numbered: self._load(*numbered, settings),
            enumerate(sources),
            settings.num_workers,
            settings.num_workers,
        )
        if settings.tiles is not None:
            for job in jobs:
                yield self._detect_in_tiles(job, settings, settings.tiles)
            return
        for batch in batched(jobs, settings.batch_size):
            yield from self._detect_batch(batch, settings)
            del batch  # else its images were held while the next ones are read

    def _load(self, index: int, source: ImageSource, settings: PredictionSettings) -> _Job:
        """An image as the model takes it; called in threads."""
        record = Detections.nothing(self.classes, index, source.path, source.frame)
        pixels = packed = None
        try:
            if isinstance(source.image, UnreadableImageError):
                raise source.image
            path = source.image if isinstance(source.image, Path) else None
            if path is not None and settings.tiles is None:
                loaded = self._pipeline.load(path, index)
            else:
                if isinstance(source.image, Path):
                    pixels = self._pipeline.read(source.image)
                else:
                    pixels = pixels_of(source.image)
                loaded = self._pipeline.take(pixels, index)
            record = replace(record, size=loaded.size)
            if settings.tiles is None:
                packed, pixels = self._pipeline.prepare(loaded), None
            if settings.keep_images:
                record = replace(record, image=viewable(loaded.pixels, loaded.size, path))
        except IMAGE_ERRORS as error:
            return _Job(replace(record, error=describe_error(error)))
        return _Job(record, packed, pixels)

    def _detect_batch(self, jobs: list[_Job], settings: PredictionSettings) -> Iterator[Detections]:
        packed = [job.packed for job in jobs if job.packed is not None]
        titles = [job.record.title for job in jobs if job.packed is not None]
        found = iter(self._run(packed, titles))
        for job in jobs:
            if job.packed is None:
                yield job.record
                continue
            instances = next(found)
            if isinstance(instances, str):
                yield replace(job.record, error=instances)
            else:
                yield fill_in(job.record, settings.choose(instances), settings)

    def _detect_in_tiles(self, job: _Job, settings: PredictionSettings, side: int) -> Detections:
        pixels = job.pixels
        if pixels is None:
            return job.record
        tiles = make_tiles(job.record.size, side, settings.overlap)
        prepared = read_ahead(
            lambda tile: self._pipeline.prepare(self._pipeline.take(tile.of(pixels))),
            tiles,
            settings.num_workers,
            settings.num_workers,
        )
        found: list[InstanceData] = []
        try:
            for batch in batched(prepared, settings.batch_size):
                for instances in self._run(batch, [job.record.title] * len(batch)):
                    if isinstance(instances, str):
                        return replace(job.record, error=instances)
                    found.append(settings.choose(instances))
        except MODEL_ERRORS:
            raise
        except IMAGE_ERRORS as error:
            return replace(job.record, error=describe_error(error))
        merged = merge_detections(found, tiles, job.record.size)
        return fill_in(job.record, merged, settings)

    def _run(self, packed: list[dict], titles: list[str]) -> list[InstanceData | str]:
        """The detections of each image, on the CPU, or why there are none."""
        if not packed:
            return []
        try:
            with torch.no_grad():
                samples = self.model.test_step(pseudo_collate(packed))
            for sample, title in zip(samples, titles):
                require_finite(sample.pred_instances, title)
            return [sample.pred_instances.cpu() for sample in samples]
        except MODEL_ERRORS:
            raise
        except IMAGE_ERRORS as error:
            if len(packed) == 1:
                return [describe_error(error)]
            # Only one of them may be too large.
            return [self._run([one], [title])[0] for one, title in zip(packed, titles)]
