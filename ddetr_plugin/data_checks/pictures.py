"""The pictures of a data set: whether they are there, and what is wrong with them."""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ddetr_plugin.data_checks.findings import Finding
from ddetr_plugin.datasets.load_checked import missing_end

__all__ = [
    'check_each',
    'check_pictures',
    'file_name',
    'find_missing',
    'missing_file',
    'rescale_size',
]

EXIF_ORIENTATION = 0x0112
EXIF_TURNED = (5, 6, 7, 8)  # orientations with width and height exchanged
# What Pillow calls the formats of these suffixes.
FORMATS = {
    '.jpg': ('JPEG', 'MPO'),
    '.jpeg': ('JPEG', 'MPO'),
    '.png': ('PNG',),
    '.bmp': ('BMP', 'DIB'),
    '.webp': ('WEBP',),
    '.tif': ('TIFF',),
    '.tiff': ('TIFF',),
}
# What the folders of a dataset's data_prefix hold.
KINDS = dict(img='pictures', seg='maps of segments')
# From so many pictures of a folder on its listing is read once, instead of asking for each.
MANY = 1000

Scales = Sequence[tuple[int, int]]


def check_pictures(folder: Path, images: Sequence[dict], scales: Scales) -> list[Finding]:
    """What is wrong with the pictures: missing, broken, of another size than stated, and so on.

    Every picture is decoded, by all cores.

    Args:
        folder: that `file_name` is relative to.
        images: entries of a COCO-format file.
        scales: (width, height) pairs that pictures are resized to, their ratio kept.
    """
    return check_each(lambda image: _check_picture(folder, image, scales), images)


def check_each(check: Callable[[dict], Iterable[Finding]], images: Sequence[dict]) -> list[Finding]:
    """All findings of `check` about every image, by all cores."""
    # Decoding is what takes time, and happens outside of Python.
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda image: list(check(image)), images)
        return [finding for findings in found for finding in findings]


def find_missing(folder: Path, images: Sequence[dict], prefix: str = 'img') -> list[Finding]:
    """The files that are not there, without looking into any.

    Args:
        folder: that `file_name` is relative to.
        images: entries of a COCO-format file.
        prefix: key of a dataset's `data_prefix`: 'img' for pictures, 'seg' for maps of segments.
    """
    if not folder.is_dir():
        return [
            Finding(
                'error',
                'missing folders',
                str(folder),
                None,
                None,
                f'there is no such folder; {len(images)} {KINDS[prefix]} should be in it',
                f'correct data_root or data_prefix.{prefix} in the config, or put the '
                f'{KINDS[prefix]} there',
            )
        ]
    by_folder: dict[str, list[tuple[str, dict]]] = {}
    for image in images:
        below, name = os.path.split(file_name(image, prefix))
        by_folder.setdefault(below, []).append((name, image))
    findings = []
    for below, entries in by_folder.items():
        present = _files(folder / below, [name for name, _ in entries])
        findings += [
            missing_file(folder, image, prefix) for name, image in entries if name not in present
        ]
    return findings


def file_name(image: dict, prefix: str) -> str:
    """The name of an image's picture, or of its map as CocoPanopticDataset knows it."""
    name = image['file_name']
    return name.replace('.jpg', '.png') if prefix == 'seg' else name


def _files(folder: Path, names: Sequence[str]) -> set[str]:
    """Those of `names` that are in `folder`, among others maybe."""
    if len(names) < MANY:
        return {name for name in names if (folder / name).is_file()}
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def missing_file(folder: Path, image: dict, prefix: str = 'img') -> Finding:
    """Of one file: arguments as `find_missing`."""
    remedy = f'put it there, or remove picture {image["id"]} from the annotations'
    if prefix == 'seg':
        remedy += '. mmdet expects the name of the picture with .png instead of .jpg'
    path = str(folder / file_name(image, prefix))
    kind = f'missing {KINDS[prefix]}'
    return Finding('error', kind, path, 'image', image['id'], 'not there', remedy)


def _check_picture(folder: Path, image: dict, scales: Scales) -> Iterator[Finding]:
    path = folder / image['file_name']

    def finding(level, kind, detail, remedy):
        return Finding(level, kind, str(path), 'image', image['id'], detail, remedy)

    if not path.is_file():
        yield missing_file(folder, image)
        return
    try:
        content = path.read_bytes()
        cut = missing_end(path)
        if cut:
            yield finding('error', 'broken pictures', cut, 'replace or remove it')
            return
        # OpenCV fills what is missing of a truncated file with grey; Pillow refuses it.
        with Image.open(io.BytesIO(content)) as picture:
            size = picture.size
            orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
            picture.load()
        # As trainings do.
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    # What decoders raise depends on the bytes; Pillow's even RuntimeError.
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = ' '.join(str(error).split()) or type(error).__name__
        reason = 'no picture that Pillow knows' if unknown else reason
        yield finding('error', 'broken pictures', reason, 'replace or remove it')
        return
    if decoded is None:
        yield finding(
            'error',
            'pictures that OpenCV cannot read',
            f'{picture.format}, mode {picture.mode}',
            'save it as PNG or JPEG with 8 bits per channel',
        )
        return
    suffix = path.suffix.lower()
    if picture.format not in FORMATS.get(suffix, (picture.format,)):
        yield finding(
            'warning',
            'pictures of another format than their name says',
            f'is {picture.format}',
            'it is read all the same; other programs may refuse it. Rename it, here and in the '
            'annotations',
        )
    yield from _check_size(image, size, orientation, scales, finding)


def _check_size(image: dict, size, orientation: int, scales: Scales, finding) -> Iterator[Finding]:
    # Loading for a training turns pictures upright; boxes drawn without that do not fit.
    size = size[::-1] if orientation in EXIF_TURNED else size
    stated = (image['width'], image['height'])
    if size != stated and size[::-1] == stated and orientation in EXIF_TURNED:
        yield finding(
            'error',
            'pictures that are turned when loaded',
            f'EXIF orientation {orientation}, upright {size[0]} x {size[1]}, annotations say '
            f'{stated[0]} x {stated[1]}',
            'save it without the EXIF orientation, or turn its boxes with it',
        )
    elif size != stated:
        yield finding(
            'error',
            'pictures of another size than stated',
            f'is {size[0]} x {size[1]}, annotations say {stated[0]} x {stated[1]}',
            'correct width and height (and the boxes, if they belong to the stated size)',
        )
    elif any(0 in rescale_size(size, scale) for scale in scales):
        width, height = next(scale for scale in scales if 0 in rescale_size(size, scale))
        yield finding(
            'error',
            'pictures that are too thin',
            f'of {size[0]} x {size[1]} nothing is left when it is made to fit {width} x {height}',
            'cut it into several, or remove it',
        )


def rescale_size(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, ...]:
    """Width and height after a resize that keeps the ratio, as mmcv calculates them.

    Args:
        size: width and height.
        scale: what neither the longer nor the shorter side may exceed: two numbers in any order.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return tuple(int(side * factor + 0.5) for side in size)
