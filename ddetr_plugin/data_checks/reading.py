"""Reading annotation files in COCO format; one that lacks what every tool needs is refused."""

import gc
import json
import re
from itertools import chain
from operator import itemgetter
from pathlib import Path

from ddetr_plugin.data_checks.boxes import NUMBER
from ddetr_plugin.data_checks.findings import Finding

__all__ = [
    'PLAIN',
    'check_encoding',
    'encoding_of',
    'read_annotations',
    'read_json',
    'read_panoptic',
    'require_coco',
]

# Some programs write 1.0, which equals 1 wherever ids are looked up.
ID = (int, float, str)
ENTRIES = {
    'images': dict(id=ID, file_name=str, width=NUMBER, height=NUMBER),
    'annotations': dict(id=ID, image_id=ID, category_id=ID),
    'categories': dict(id=ID, name=str),
}
PANOPTIC_ENTRIES = dict(ENTRIES, annotations=dict(image_id=ID, segments_info=list))
SEGMENT = dict(id=ID, category_id=ID)
PLAIN = 'utf-8'  # the one encoding that pycocotools and mmdet read
# A list of numbers, however deep. No string of JSON can hold the quotes around the key unescaped.
POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[^"{}]*\]')


def read_annotations(path: Path, polygons: bool = True) -> dict:
    """The dict of a COCO-format JSON file.

    Args:
        path: the file.
        polygons: read polygons, too. Without them a file as large as COCO's takes a sixth of the
            time: they are nearly all of its numbers.

    Raises:
        OSError: there is no such file.
        ValueError: it is something else, or an entry lacks what every tool relies on.
    """
    content = read_json(path, polygons)
    require_coco(path, content)
    return content


def read_json(path: Path, polygons: bool = True):
    """What a JSON file holds, of whatever form, in UTF-8, UTF-16 or UTF-32, marked or not.

    `polygons` as `read_annotations`.

    Raises:
        OSError: there is no such file.
        ValueError: it is no JSON.
    """
    data = _read_plain(path)
    return _parse(path, data if polygons else POLYGONS.sub(b'"segmentation":[]', data))


def require_coco(path: Path, content) -> None:
    """Raises ValueError where the content of a file is not what `read_annotations` returns."""
    _check_parts(path, content, ENTRIES)


def encoding_of(path: Path) -> str:
    """The encoding of a JSON file, as Python calls it: 'utf-8-sig' has a byte-order mark.

    pycocotools, and with it mmdet, reads no other than `PLAIN`.

    Raises:
        OSError: there is no such file.
    """
    with open(path, 'rb') as file:
        return json.detect_encoding(file.read(4))


def check_encoding(path: Path) -> list[Finding]:
    """An error where pycocotools, which a training reads the file with, cannot."""
    encoding = encoding_of(path)
    if encoding == PLAIN:
        return []
    marked = encoding == 'utf-8-sig'
    return [
        Finding(
            'error',
            'annotation files that pycocotools cannot read',
            str(path),
            None,
            None,
            'it begins with a byte-order mark' if marked else f'it is {encoding.upper()}',
            'save it as UTF-8 without a byte-order mark. tools/train.py and tools/demo.py read it '
            'as it is; then test with the config in their work folder',
        )
    ]


def read_panoptic(path: Path) -> dict:
    """The dict of a JSON file in COCO's panoptic format, whose annotations list segments.

    Raises:
        As `read_annotations`.
    """
    content = read_json(path)
    _check_parts(path, content, PANOPTIC_ENTRIES)
    segments = [annotation['segments_info'] for annotation in content['annotations']]
    # All at once; one by one only to say where it is.
    if not _all_usable(list(chain.from_iterable(segments)), SEGMENT):
        for annotation, entries in zip(content['annotations'], segments):
            part = f'segments_info of image {annotation["image_id"]!r}'
            _check_entries(path, part, entries, SEGMENT)
    return content


def _read_plain(path: Path) -> bytes:
    """The bytes of a JSON file in plain UTF-8."""
    data = path.read_bytes()
    encoding = json.detect_encoding(data)
    if encoding == PLAIN:
        return data
    try:
        return data.decode(encoding).encode()
    except UnicodeError as error:
        raise ValueError(f'{path} is not JSON: it is no {encoding.upper()}: {error}') from None


def _parse(path: Path, data: bytes):
    # Millions of new objects that are no garbage: looking through them again and again takes
    # longer than reading.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{path} is not JSON: it is not UTF-8 (byte {error.start} is {data[error.start]:#x}). '
            'Which program wrote it? Save it as UTF-8'
        ) from None
    except ValueError as error:
        raise ValueError(f'{path} is not JSON: {error}') from None
    except RecursionError:
        raise ValueError(f'{path} is not in COCO format: it is nested too deeply') from None
    finally:
        if collecting:
            gc.enable()


def _check_parts(path: Path, content, parts: dict) -> None:
    missing = set(parts) - set(content if isinstance(content, dict) else ())
    if missing:
        raise ValueError(
            f'{path} is not in COCO format: it has no {", ".join(sorted(missing))}. A data set has '
            'images, annotations and categories'
        )
    for part, fields in parts.items():
        if not isinstance(content[part], list):
            raise ValueError(
                f'{path} is not in COCO format: {part} is a {type(content[part]).__name__}, not a '
                'list'
            )
        _check_entries(path, part, content[part], fields)


def _check_entries(path: Path, part: str, entries: list, fields: dict) -> None:
    if _all_usable(entries, fields):
        return
    for number, entry in enumerate(entries):
        for field, kinds in fields.items():
            value = entry.get(field) if isinstance(entry, dict) else entry
            if not isinstance(entry, dict) or not isinstance(value, kinds):
                raise ValueError(
                    f'{path} is not in COCO format: entry {number} of {part} has no usable '
                    f'{field} (found {value!r}); every one needs {", ".join(fields)}'
                )


def _all_usable(entries: list, fields: dict) -> bool:
    """Whether every entry has every field, without a loop in Python over a million of them."""
    try:
        return all(
            issubclass(kind, kinds)
            for field, kinds in fields.items()
            for kind in set(map(type, map(itemgetter(field), entries)))
        )
    except (KeyError, TypeError, IndexError):
        return False
