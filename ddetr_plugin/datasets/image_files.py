"""Image files: the one way to read them, for checks, training, tests and prediction alike."""

import os
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import mmcv
import numpy as np

__all__ = [
    'AS_MMCV',
    'IMAGE_SUFFIXES',
    'Decoding',
    'UnreadableImageError',
    'decode_image',
    'decoding_of',
    'missing_end',
    'read_image',
]

# What files of images are called, in any case. Others are read where they are named.
IMAGE_SUFFIXES = (
    '.avif', '.bmp', '.jfif', '.jpe', '.jpeg', '.jpg', '.jp2', '.png', '.pbm', '.pgm', '.ppm',
    '.tif', '.tiff', '.webp',
)  # fmt: skip
JPEG_START, JPEG_END = b'\xff\xd8\xff', b'\xff\xd9'
# The markers that end a scan: neither a stuffed zero, a restart nor a filling byte.
JPEG_MARKER = re.compile(rb'\xff([^\x00\xd0-\xd7\xff])', re.DOTALL)
PNG_START, PNG_END = b'\x89PNG\r\n\x1a\n', b'IEND\xaeB`\x82'


class UnreadableImageError(ValueError):
    """An image file is missing its end, or cannot be decoded; the message is the reason."""


class Decoding(NamedTuple):
    """How bytes become pixels; the defaults are those of mmcv's LoadImageFromFile.

    Attributes:
        color_type: a flag of `mmcv.imfrombytes`. 'color' is 8-bit BGR, turned as EXIF says.
        backend: a decoder of `mmcv.imfrombytes`.
    """

    color_type: str = 'color'
    backend: str | None = 'cv2'


AS_MMCV = Decoding()


def decoding_of(pipeline) -> Decoding:
    """How the first LoadImageFromFile of a pipeline decodes; the default where there is none.

    Args:
        pipeline: configs of transforms, which may hold that of the loader, as LoadImageChecked.
    """
    for step in _steps(pipeline or ()):
        if 'color_type' in step or 'imdecode_backend' in step:
            color_type = step.get('color_type', 'color')
            return Decoding(color_type, step.get('imdecode_backend', 'cv2'))
    return AS_MMCV


def _steps(pipeline) -> Iterator[Mapping]:
    for step in pipeline:
        if isinstance(step, Mapping):
            yield from _steps([step.get('load')])
            yield step


def read_image(path: str | os.PathLike, decoding: Decoding = AS_MMCV) -> np.ndarray:
    """The pixels of a local file, as `decode_image` returns them.

    Raises:
        OSError: there is no such file.
        UnreadableImageError: it is not an image, or not a whole one.
    """
    data = Path(path).read_bytes()
    reason = _missing_end(BytesIO(data))
    if reason:
        raise UnreadableImageError(reason)
    return decode_image(data, decoding)


def decode_image(data: bytes, decoding: Decoding = AS_MMCV) -> np.ndarray:
    """The pixels of an image, exactly as mmcv's LoadImageFromFile makes them of a file's bytes.

    OpenCV's imread is another decoder than its imdecode, which mmcv calls: of a TIFF on its side
    it returns nothing. Pillow knows other formats, and turns others upright. So no file is read by
    them.

    Returns:
        (H, W, 3) uint8, BGR, upright, by default; other `decoding` makes others.

    Raises:
        UnreadableImageError: they cannot be decoded.
    """
    if not data:
        raise UnreadableImageError('it is empty')
    try:
        image = mmcv.imfrombytes(data, flag=decoding.color_type, backend=decoding.backend)
    except MemoryError:
        raise
    # What decoders raise depends on the bytes.
    except Exception as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(reason) from error
    if image is None:
        raise UnreadableImageError('it cannot be decoded')
    return image


def missing_end(path: str | os.PathLike) -> str | None:
    """Why a local image is not whole, or None if it is, as far as its last bytes tell.

    Some decoders fill in what a truncated JPEG or PNG lacks, and say nothing. Other formats are
    not looked into: OpenCV refuses what is cut of BMP, WebP, TIFF, AVIF, GIF, JPEG 2000 and PPM.

    Raises:
        OSError: there is no such file.
    """
    with open(path, 'rb') as file:
        return _missing_end(file)


def _missing_end(file: BinaryIO) -> str | None:
    start = file.read(len(PNG_START))
    if start.startswith(JPEG_START):
        ends = JPEG_END
    elif start == PNG_START:
        ends = PNG_END
    else:
        return None if start else 'it is empty'
    file.seek(-len(ends), os.SEEK_END)
    if file.read() == ends:
        return None
    # Some cameras write more after the end.
    file.seek(0)
    content = file.read()
    whole = _jpeg_ends(content) if ends == JPEG_END else ends in content
    return None if whole else f'it is truncated after {len(content)} bytes'


def _jpeg_ends(content: bytes) -> bool:
    """Whether a JPEG has its own end marker; a thumbnail before it and what follows have others."""
    position = len(JPEG_START) - 1
    while marker := JPEG_MARKER.search(content, position):
        if marker[0] == JPEG_END:
            return True
        # A segment says how long it is; a scan's data, which has no length, follows its segment.
        length = int.from_bytes(content[marker.end() : marker.end() + 2], 'big')
        position = marker.end() + length
    return False
