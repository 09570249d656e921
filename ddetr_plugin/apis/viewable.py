"""Images of any kind as an eye can see them."""

import os
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from ddetr_plugin.datasets.image_files import UnreadableImageError, decode_image

__all__ = ['viewable']


def viewable(
    pixels: np.ndarray, size: tuple[int, int], path: str | os.PathLike | None = None
) -> np.ndarray:
    """An image to draw on.

    Args:
        pixels: (H, W) or (H, W, channels), any dtype: what a loader gave.
        size: (height, width) of the original image.
        path: of its file, which is read once more where the loader has resized it.

    Returns:
        (height, width, 3) uint8, BGR: the first three channels, or the first one as grey. What does
        not fit into 8 bits is stretched to them.
    """
    if pixels.shape[:2] != size and path is not None:
        with suppress(UnreadableImageError):
            pixels = decode_image(Path(path).read_bytes())
    image = np.atleast_3d(pixels)
    image = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
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
