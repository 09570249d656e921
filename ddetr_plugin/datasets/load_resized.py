"""Decoding large JPEG pictures at the size that the network gets."""

import struct
from io import BytesIO
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from mmdet.datasets.transforms import Resize
from mmengine import fileio
from PIL import Image

from ddetr_plugin.datasets.image_files import UnreadableImageError, decode_image
from ddetr_plugin.registry import TRANSFORMS

__all__ = ['LoadImageResized', 'largest_reduction', 'read_jpeg_header']

REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}
EXIF_ORIENTATION = 0x0112
# Which axes of (H, W, 3) to exchange and then to reverse, so that a picture stands upright.
UPRIGHT: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}


class JpegHeader(NamedTuple):
    """What is known of a JPEG picture before it is decoded.

    Attributes:
        size: (width, height) in pixels as stored.
        orientation: EXIF's number for how to turn it; 1, upright, where there is none.
    """

    size: tuple[int, int]
    orientation: int

    def upright(self, sides: tuple[int, int]) -> tuple[int, int]:
        """`sides` of the stored picture in the order of the upright one, and the other way."""
        return sides[::-1] if UPRIGHT.get(self.orientation, (False,))[0] else sides


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of the JPEG file `data`; None if it is none, or not one that Pillow can read."""
    if not data.startswith(b'\xff\xd8\xff'):
        return None
    try:
        with Image.open(BytesIO(data)) as file:
            # Not getexif(), which also looks into XMP: OpenCV does not.
            exif = Image.Exif()
            exif.load(file.info.get('exif', b''))
            return JpegHeader(file.size, exif.get(EXIF_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return None


def turn_upright(picture: np.ndarray, orientation: int) -> np.ndarray:
    """A picture (H, W, 3) turned as EXIF's `orientation` says; numbers that it lacks do nothing."""
    exchange, reverse = UPRIGHT.get(orientation, (False, ()))
    if exchange:
        picture = picture.transpose(1, 0, 2)
    return np.ascontiguousarray(np.flip(picture, reverse))


def largest_reduction(size: tuple[int, int], target: tuple[int, int]) -> int:
    """The largest of 8, 4, 2 and 1 by which both sides shrink at least from `size` to `target`."""
    for factor in REDUCED:
        if all(wanted * factor <= side for side, wanted in zip(size, target)):
            return factor
    return 1


@TRANSFORMS.register_module()
class LoadImageResized(Resize):
    """mmdet's LoadImageFromFile and Resize in one: a JPEG is decoded no larger than needed.

    Where a picture shrinks to a half or less, the JPEG decoder leaves out the frequencies that
    would be lost anyway (a half, a quarter or an eighth of each side), and bilinear interpolation
    does the rest. That is quicker, the more so the larger the picture; and it aliases less than
    mmdet's Resize, which reads four pixels for one however much the picture shrinks: pixels
    differ from mmdet's. Everything else is the same: size, `ori_shape`, `scale_factor`, boxes,
    orientation. Other pictures, and other formats than JPEG, get mmdet's own pixels.

    It stands where Resize does, with LoadAnnotations before it and no LoadImageFromFile; in
    RandomChoiceResize it is the ``resize_type``. A picture that is in memory already (`img`) is
    only resized. Masks cannot be loaded so: mmdet's LoadAnnotations makes them of the size of the
    whole picture, which only LoadImageFromFile tells it before.

    Required keys: `img_path`, or `img`. Adds `img` (H, W, 3) uint8, BGR, `img_shape`, `ori_shape`
    (h, w), `scale`, `scale_factor` (w, h); resizes boxes as mmdet's Resize.

    Args:
        scale: (width, height) in pixels; with `keep_ratio` the largest size, whichever side is
            the longer one.
        keep_ratio: keep the aspect ratio.
        clip_object_border: clip boxes to the picture.
        backend_args: of mmengine's file backend.

    Raises:
        ValueError: on use: a file cannot be decoded; the message names it.
    """

    def __init__(
        self,
        scale: int | tuple[int, int],
        keep_ratio: bool = False,
        clip_object_border: bool = True,
        backend_args: dict | None = None,
    ):
        super().__init__(scale=scale, keep_ratio=keep_ratio, clip_object_border=clip_object_border)
        self.backend_args = backend_args

    def _resize_img(self, results: dict) -> None:
        if results.get('img') is not None:
            # tools/predict.py hands over pictures without a transform that loads them.
            results.setdefault('ori_shape', results['img'].shape[:2])
            super()._resize_img(results)
            return
        data = fileio.get(results['img_path'], backend_args=self.backend_args)
        if self._decode_reduced(data, results):
            return
        try:
            picture = decode_image(data)
        except UnreadableImageError as error:
            raise ValueError(f'cannot decode {results["img_path"]}: {error}') from error
        results['img'] = picture
        results['ori_shape'] = picture.shape[:2]
        super()._resize_img(results)

    def _decode_reduced(self, data: bytes, results: dict) -> bool:
        """Fills in picture, shapes and factors, unless the picture must be decoded as a whole."""
        header = read_jpeg_header(data)
        if header is None:
            return False
        size = width, height = header.upright(header.size)
        target = results['scale']
        if self.keep_ratio:
            target = mmcv.rescale_size(size, target)
        factor = largest_reduction(size, target)
        if factor == 1:
            return False
        # Turned afterwards: the cells at the right and lower edge of the stored picture may stick
        # out of it, as libjpeg rounds up, and those edges may become the left and upper one.
        flags = REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if picture is None or picture.shape[1::-1] != tuple(-(-n // factor) for n in header.size):
            return False
        columns, rows = header.upright(target)
        # Hence the exact factors, too, not those that fit all cells into the target.
        fx, fy = columns * factor / header.size[0], rows * factor / header.size[1]
        picture = cv2.resize(picture, None, fx=fx, fy=fy, interpolation=cv2.INTER_LINEAR)
        results['img'] = turn_upright(picture[:rows, :columns], header.orientation)
        results['ori_shape'] = (height, width)
        results['img_shape'] = results['img'].shape[:2]
        results['scale_factor'] = (target[0] / width, target[1] / height)
        results['keep_ratio'] = self.keep_ratio
        return True
