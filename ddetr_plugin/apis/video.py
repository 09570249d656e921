"""Videos, frame by frame, through OpenCV."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ddetr_plugin.datasets import UnreadableImageError

__all__ = ['VIDEO_SUFFIXES', 'VideoInfo', 'VideoWriter', 'is_video', 'read_frames', 'video_info']

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
USUAL_FPS = 25.0  # where a file does not say


class VideoInfo(NamedTuple):
    """What the header of a video says.

    Attributes:
        size: (height, width) in pixels.
        fps: frames per second.
        frames: their number, which some formats only estimate; 0 if it is not said.
    """

    size: tuple[int, int]
    fps: float
    frames: int


def is_video(path: str | os.PathLike) -> bool:
    """Whether this is a file with the suffix of a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES and Path(path).is_file()


def _open(path: str | os.PathLike) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        capture.release()
        raise UnreadableImageError(
            f'{path} is no video that OpenCV can read; convert it, such as with '
            f'ffmpeg -i {Path(path).name} {Path(path).stem}.mp4'
        )
    return capture


def video_info(path: str | os.PathLike) -> VideoInfo:
    """What the header of a video says.

    Raises:
        UnreadableImageError: OpenCV cannot read it.
    """
    capture = _open(path)
    try:
        width, height, fps, frames = (
            capture.get(name)
            for name in (
                cv2.CAP_PROP_FRAME_WIDTH,
                cv2.CAP_PROP_FRAME_HEIGHT,
                cv2.CAP_PROP_FPS,
                cv2.CAP_PROP_FRAME_COUNT,
            )
        )
    finally:
        capture.release()
    usable = math.isfinite(fps) and fps > 0
    return VideoInfo((int(height), int(width)), fps if usable else USUAL_FPS, max(0, int(frames)))


def read_frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """The frames of a video, (H, W, 3) uint8, BGR, one at a time.

    Raises:
        UnreadableImageError: OpenCV cannot read it, or finds no frame.
    """
    capture = _open(path)
    try:
        number = 0
        while True:
            there, frame = capture.read()
            if not there:
                break
            number += 1
            yield frame
    finally:
        capture.release()
    if number == 0:
        raise UnreadableImageError(f'{path} has no frame that OpenCV can read')


class VideoWriter:
    """Writes frames into an mp4 file.

    Args:
        path: of the file.
        fps: frames per second.
    """

    def __init__(self, path: str | os.PathLike, fps: float):
        self.path = Path(path)
        self.fps = fps
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, int] | None = None

    def write(self, frame: np.ndarray) -> None:
        """Add a frame (H, W, 3) uint8, BGR; the first one's size is that of the video.

        Raises:
            OSError: the file cannot be written.
        """
        if self._writer is None:
            self._size = frame.shape[1], frame.shape[0]
            code = cv2.VideoWriter.fourcc(*'mp4v')
            self._writer = cv2.VideoWriter(str(self.path), code, self.fps, self._size)
            if not self._writer.isOpened():
                raise OSError(f'{self.path} cannot be written; is the disk full?')
        if (frame.shape[1], frame.shape[0]) != self._size:
            # OpenCV would leave it out and say nothing.
            frame = cv2.resize(frame, self._size)
        self._writer.write(frame)

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.release()
