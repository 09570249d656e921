"""Detect objects on files: draw them, and write what was found."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
from mmengine.config import Config

from ddetr_plugin.apis.detections import Detections
from ddetr_plugin.apis.detector import Detector
from ddetr_plugin.apis.drawing import MIN_WIDTH
from ddetr_plugin.apis.image_files import find_images, name_results
from ddetr_plugin.apis.outputs import Output, open_outputs
from ddetr_plugin.apis.video import VideoWriter, is_video, video_info
from ddetr_plugin.datasets import UnreadableImageError
from ddetr_plugin.progress import track

__all__ = ['PredictionJob', 'PredictionSummary', 'predict', 'prepare_prediction', 'run_prediction']


class PredictionJob(NamedTuple):
    """Files that are to be predicted, and where their results go.

    Attributes:
        detector: that predicts them.
        files: (path, name below the folder that holds all of them, file to draw to).
        left_out: lines on what was left out of a folder.
        outputs: files of detections.
    """

    detector: Detector
    files: list[tuple[Path, Path, Path]]
    left_out: list[str]
    outputs: list[Output]


class PredictionSummary(NamedTuple):
    """How many images (frames count) and objects there were, and how many images failed."""

    images: int
    objects: int
    failed: int


def predict(
    images: str | os.PathLike,
    config: str | os.PathLike | Config,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    device: str | None = None,
    recursive: bool = False,
    formats: Sequence[str] = ('coco',),
    options: Mapping | None = None,
    log: Callable[[str], None] = print,
) -> PredictionSummary:
    """Detect objects on files; draw them, and write what was found.

    Args:
        images: an image, a folder, a glob, or a video.
        config, checkpoint, device: see `Detector`.
        out: folder; gets the drawn images and videos and files in `formats`. Images of several
            folders keep their paths below the folder that holds them all.
        recursive: look into the folders below a folder, too.
        formats: keys of `ddetr_plugin.apis.outputs.FORMATS`.
        options: further ones of `Detector.__call__`.
        log: takes a line for each image or video, and for what was left out.

    Raises:
        OSError, ValueError, MissingMMCVOpError: see `Detector`; or a drawing cannot be written, or
            would overwrite an image.
        NotFiniteError: the model finds boxes or scores that are NaN; nothing more is written.
    """
    job = prepare_prediction(images, config, checkpoint, out, device, recursive, formats)
    return run_prediction(job, options, log)


def prepare_prediction(
    images: str | os.PathLike,
    config: str | os.PathLike | Config,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    device: str | None = None,
    recursive: bool = False,
    formats: Sequence[str] = ('coco',),
) -> PredictionJob:
    """All that comes before the first image; arguments and errors as `predict`."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f'--out {out} is a file; name a folder')
    paths, left_out = find_images(images, recursive, skip=out)
    files = name_results(paths, out)
    detector = Detector(config, checkpoint, device)
    out.mkdir(parents=True, exist_ok=True)
    outputs = open_outputs(formats, out, detector.classes, detector.category_ids)
    return PredictionJob(detector, files, left_out, outputs)


def run_prediction(
    job: PredictionJob, options: Mapping | None = None, log: Callable[[str], None] = print
) -> PredictionSummary:
    """Predict what `prepare_prediction` has prepared; arguments and errors as `predict`."""
    for line in job.left_out:
        log(f'left out: {line}')
    paths = [path for path, _, _ in job.files]
    places = {str(path): (name.as_posix(), target) for path, name, target in job.files}
    results = job.detector(paths, keep_images=True, **(options or {}))
    images = objects = failed = 0
    with _Drawings(log) as drawings:
        for found in track(results, 'Images', sum(map(_count, paths))):
            name, target = places[str(found.source)]
            if found.error is not None:
                failed += 1
                log(f'{found.title}: {found.error}; skipped')
                continue
            if found.frame is not None:
                name = f'{name}/{found.frame:06d}'
            for output in job.outputs:
                output.add(name, found)
            drawings.add(found, target)
            images += 1
            objects += len(found.clipped())
    for output in job.outputs:
        output.close()
    return PredictionSummary(images, objects, failed)


def _count(path: Path) -> int:
    """How many images a file has, as far as it says."""
    if not is_video(path):
        return 1
    try:
        return max(1, video_info(path).frames)
    except UnreadableImageError:
        return 1


class _Drawings:
    """Draws images to files and frames to videos, one video at a time; a context manager."""

    def __init__(self, log: Callable[[str], None]):
        self._log = log
        self._source: str | None = None
        self._writer: VideoWriter | None = None
        self._frames = self._objects = 0

    def add(self, found: Detections, target: Path) -> None:
        """Draw one image or frame.

        Raises:
            OSError: it cannot be written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        number = len(found.clipped())
        if found.frame is None or found.source is None:
            self.close()
            scale = max(1, -(-MIN_WIDTH // found.size[1]))
            if not cv2.imwrite(str(target), found.draw(scale=scale)):
                raise OSError(f'{target} cannot be written; is the disk full?')
            self._log(f'{found.title}: {number} objects')
            return
        if self._writer is None or found.source != self._source:
            self.close()
            self._source = found.source
            self._writer = VideoWriter(target, video_info(found.source).fps)
        self._writer.write(found.draw())
        self._frames += 1
        self._objects += number

    def close(self) -> None:
        """End the video that is being written, if any."""
        if self._writer is not None:
            self._writer.close()
            self._log(f'{self._source}: {self._objects} objects on {self._frames} frames')
        self._source = self._writer = None
        self._frames = self._objects = 0

    def __enter__(self) -> '_Drawings':
        return self

    def __exit__(self, *error) -> None:
        self.close()
