"""The images that a detector is given: files, folders, videos, arrays, one by one."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ddetr_plugin.apis.image_files import find_images
from ddetr_plugin.apis.video import is_video, read_frames
from ddetr_plugin.datasets import UnreadableImageError

__all__ = ['ImageSource', 'find_sources', 'pixels_of']


class ImageSource(NamedTuple):
    """One image, not decoded yet if it is a file.

    Attributes:
        image: path of a file, array, or PIL image; or why there is none.
        path: of the file or the video; None where there is none.
        frame: number in its video, from 0; None for images.
    """

    image: Path | np.ndarray | Image.Image | UnreadableImageError
    path: str | None = None
    frame: int | None = None


def find_sources(images, recursive: bool = False) -> Iterator[ImageSource]:
    """The images that a detector was given, in order; nothing is held.

    Args:
        images: path, glob, folder or video; array or PIL image; or an iterable of these, such as a
            generator of arrays.
        recursive: look into the folders below a folder, too.

    Raises:
        FileNotFoundError: the one path that was given is no file, folder or glob. In an iterable,
            such a path is an image that cannot be read, when its turn comes.
        TypeError: it is something else; in an iterable, when its turn comes.
    """
    if isinstance(images, (str, os.PathLike)):
        return _of_path(Path(images), recursive)
    if isinstance(images, (np.ndarray, Image.Image)):
        return iter([ImageSource(images)])
    if not isinstance(images, Iterable):
        raise _wrong(images)
    return _of_each(images, recursive)


def _of_path(path: Path, recursive: bool) -> Iterator[ImageSource]:
    if is_video(path):
        return _of_video(path)
    found, _ = find_images(path, recursive)
    return (ImageSource(file, str(file)) for file in found)


def _of_video(path: Path) -> Iterator[ImageSource]:
    try:
        for number, frame in enumerate(read_frames(path)):
            yield ImageSource(frame, str(path), number)
    except UnreadableImageError as error:
        yield ImageSource(error, str(path))


def _of_each(images: Iterable, recursive: bool) -> Iterator[ImageSource]:
    for image in images:
        if isinstance(image, (np.ndarray, Image.Image)):
            yield ImageSource(image)
        elif not isinstance(image, (str, os.PathLike)):
            raise _wrong(image)
        elif Path(image).is_dir() or is_video(image):
            yield from _of_path(Path(image), recursive)
        else:
            yield ImageSource(Path(image), str(image))


def _wrong(image) -> TypeError:
    return TypeError(
        'an image is a path, an array (H, W, 3) of BGR uint8, a PIL image, or an iterable of '
        f'these, not {type(image).__name__}'
    )


def pixels_of(image: np.ndarray | Image.Image) -> np.ndarray:
    """An array or a PIL image as the array that mmcv would decode.

    Returns:
        Arrays as they are. Of PIL images (H, W, 3) uint8, BGR, turned upright as EXIF says,
        without alpha; of 16 bits the upper 8.

    Raises:
        TypeError: a PIL image has 32 bits for each pixel's value, which no file of 8 bits has.
    """
    if isinstance(image, np.ndarray):
        return image
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I;16'):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ('I', 'F'):
        raise TypeError(
            f'a PIL image of mode {image.mode} has no known range; give an array (H, W, 3) of BGR '
            'uint8'
        )
    return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])
