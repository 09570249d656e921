"""The pictures of a data set: whether they are there, and what is wrong with them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ddetr_plugin.data_checks.findings import Finding
from ddetr_plugin.data_checks.sizes import SizeMismatch, judge_sizes
from ddetr_plugin.data_checks.whereabouts import Whereabouts
from ddetr_plugin.datasets.image_files import (
    AS_MMCV,
    Decoding,
    UnreadableImageError,
    missing_end,
    read_image,
)
from ddetr_plugin.progress import track

__all__ = [
    'check_each',
    'check_pictures',
    'file_name',
    'find_missing',
    'missing_file',
    'rescale_size',
]

EXIF_ORIENTATION = 0x0112
# Formats that Pillow decodes wholly, so that what it stumbles over is a fault of the file.
CHECKED_BY_PILLOW = ('JPEG', 'MPO', 'PNG')
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


def check_pictures(
    folder: Path,
    images: Sequence[dict],
    scales: Scales,
    annotations: Iterable[dict] = (),
    decoding: Decoding = AS_MMCV,
    whereabouts: Whereabouts | None = None,
) -> list[Finding]:
    """What is wrong with the pictures: missing, broken, of another size than stated, and so on.

    Every picture is decoded as a training decodes it, by all cores.

    Args:
        folder: that `file_name` is relative to.
        images: entries of a COCO-format file.
        scales: (width, height) pairs that pictures are resized to, their ratio kept.
        annotations: of the file; their boxes tell which is right where two sizes differ.
        decoding: as the pipeline decodes.
        whereabouts: where to look for missing ones.
    """
    findings = find_missing(folder, images, whereabouts=whereabouts)
    if not folder.is_dir():
        return findings
    missing = {finding.file for finding in findings}
    present = [image for image in images if str(folder / image['file_name']) not in missing]
    found = check_each(lambda image: _check_picture(folder, image, scales, decoding), present)
    mismatches = [entry for entry in found if isinstance(entry, SizeMismatch)]
    findings += [entry for entry in found if isinstance(entry, Finding)]
    return findings + judge_sizes(mismatches, annotations)


def check_each(check: Callable[[dict], Iterable], images: Sequence[dict]) -> list:
    """All that `check` finds about every image, in order, by all cores."""
    # Decoding is what takes time, and happens outside of Python.
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda image: list(check(image)), images)
        return list(chain.from_iterable(track(found, 'Checking images', len(images))))


def find_missing(
    folder: Path,
    images: Sequence[dict],
    prefix: str = 'img',
    whereabouts: Whereabouts | None = None,
) -> list[Finding]:
    """The files that are not there, without looking into any.

    Args:
        folder: that `file_name` is relative to.
        images: entries of a COCO-format file.
        prefix: key of a dataset's `data_prefix`: 'img' for pictures, 'seg' for maps of segments.
        whereabouts: where to look for what is missing; `folder` alone by default.
    """
    whereabouts = Whereabouts([folder]) if whereabouts is None else whereabouts
    if not folder.is_dir():
        return [_missing_folder(folder, images, prefix, whereabouts)]
    by_folder: dict[str, list[tuple[str, dict]]] = {}
    for image in images:
        below, name = os.path.split(file_name(image, prefix))
        by_folder.setdefault(below, []).append((name, image))
    findings = []
    for below, entries in by_folder.items():
        present = _files(folder / below, [name for name, _ in entries])
        findings += [
            missing_file(folder, image, prefix, whereabouts)
            for name, image in entries
            if name not in present
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


def _missing_folder(
    folder: Path, images: Sequence[dict], prefix: str, whereabouts: Whereabouts
) -> Finding:
    noun = KINDS[prefix]
    detail = f'there is no such folder; {len(images)} {noun} should be in it'
    likely = whereabouts.folder_of([file_name(image, prefix) for image in images])
    if likely:
        detail += f'. {likely[1]} of them are in {likely[0]}'
    remedy = f'correct data_root or data_prefix.{prefix} in the config, or put the {noun} there'
    return Finding('error', 'missing folders', str(folder), None, None, detail, remedy)


def missing_file(
    folder: Path, image: dict, prefix: str = 'img', whereabouts: Whereabouts | None = None
) -> Finding:
    """Of one file: arguments as `find_missing`."""
    name = file_name(image, prefix)
    hint = whereabouts.hint(folder, name) if whereabouts else None
    remedy = f'put it there, or remove picture {image["id"]} from the annotations'
    if hint:
        remedy = f'correct file_name or data_prefix.{prefix}, or {remedy}'
    if prefix == 'seg':
        remedy += '. mmdet expects the name of the picture with .png instead of .jpg'
    kind = f'missing {KINDS[prefix]}'
    detail = f'not there, but {hint}' if hint else 'not there'
    return Finding('error', kind, str(folder / name), 'image', image['id'], detail, remedy)


def _check_picture(
    folder: Path, image: dict, scales: Scales, decoding: Decoding
) -> Iterator[Finding | SizeMismatch]:
    path = folder / image['file_name']

    def finding(level, kind, detail, remedy):
        return Finding(level, kind, str(path), 'image', image['id'], detail, remedy)

    try:
        height, width = read_image(path, decoding).shape[:2]
        reason = None
    except UnreadableImageError as error:
        reason = str(error)
    except OSError as error:
        yield finding('error', 'broken pictures', str(error), 'replace or remove it')
        return
    pillow = _pillow_opinion(path)
    if reason is None and pillow.format in CHECKED_BY_PILLOW:
        # OpenCV fills in what it cannot decode, and says nothing.
        reason = pillow.fault
    elif reason and pillow.format and not pillow.fault and not missing_end(path):
        yield finding(
            'error',
            'pictures that OpenCV cannot read',
            f'{pillow.format}, mode {pillow.mode}',
            'save it as PNG or JPEG with 8 bits per channel',
        )
        return
    if reason:
        reason = missing_end(path) or pillow.fault or reason
        yield finding('error', 'broken pictures', reason, 'replace or remove it')
        return
    if pillow.format and pillow.format not in FORMATS.get(path.suffix.lower(), (pillow.format,)):
        yield finding(
            'warning',
            'pictures of another format than their name says',
            f'is {pillow.format}',
            'it is read all the same; other programs may refuse it. Rename it, here and in the '
            'annotations',
        )
    size = width, height
    if size != (image['width'], image['height']):
        yield SizeMismatch(path, image, size, pillow.orientation)
    elif any(0 in rescale_size(size, scale) for scale in scales):
        width, height = next(scale for scale in scales if 0 in rescale_size(size, scale))
        yield finding(
            'error',
            'pictures that are too thin',
            f'of {size[0]} x {size[1]} nothing is left when it is made to fit {width} x {height}',
            'cut it into several, or remove it',
        )


class _PillowOpinion(NamedTuple):
    """What Pillow makes of a file: a second opinion, and words for what it is.

    Attributes:
        format: its name; None of what it does not know.
        mode: of its pixels.
        orientation: EXIF's number for how to turn it.
        fault: what it stumbles over; None if it decodes all.
    """

    format: str | None = None
    mode: str | None = None
    orientation: int = 1
    fault: str | None = None


def _pillow_opinion(path: Path) -> _PillowOpinion:
    opinion = _PillowOpinion()
    try:
        with Image.open(path) as picture:
            opinion = _PillowOpinion(picture.format, picture.mode)
            orientation = picture.getexif().get(EXIF_ORIENTATION, 1)
            opinion = opinion._replace(orientation=orientation)
            picture.load()
        return opinion
    except Image.DecompressionBombError:
        # Large, which is no fault.
        return opinion
    # What decoders raise depends on the bytes; Pillow's even RuntimeError.
    except Exception as error:
        fault = ' '.join(str(error).split()) or type(error).__name__
        return opinion._replace(fault=fault)


def rescale_size(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, ...]:
    """Width and height after a resize that keeps the ratio, as mmcv calculates them.

    Args:
        size: width and height.
        scale: what neither the longer nor the shorter side may exceed: two numbers in any order.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return tuple(int(side * factor + 0.5) for side in size)
