"""COCO's format as tools really write it, made into what trainings and pycocotools read."""

import math
from collections.abc import Callable
from pathlib import Path

from ddetr_plugin.intake.changes import Changes
from ddetr_plugin.intake.ids import key, number, renumber
from ddetr_plugin.intake.shapes import area_of, box_of

__all__ = ['image_names', 'normalise']

IDS = (int, float, str)
NAMES = ('file_name', 'filename', 'path', 'coco_url')  # keys of an image's file, the best first


def image_names(content: dict) -> list[str]:
    """The names of the images' files, as written; '' for an image without one."""
    names = []
    for image in content['images']:
        values = [image.get(k) for k in NAMES] if isinstance(image, dict) else []
        names.append(next((v for v in values if isinstance(v, str) and v), ''))
    return names


def normalise(
    file: Path,
    content: dict,
    names: list[str],
    size_of: Callable[[str], tuple[int, int] | None],
    changes: Changes,
) -> dict:
    """The content with integer ids, numbers that are numbers, and every field that is needed.

    What cannot be computed stays as it is, for the checks to find.

    Args:
        file: the annotation file, for `changes`.
        content: its dict; left alone.
        names: of the images' files, in the order of `images`.
        size_of: (width, height) in pixels of the image of that name, or None.
        changes: gets what is changed.
    """
    parts = {part: content[part] for part in ('images', 'annotations', 'categories')}
    if not all(isinstance(e, dict) for entries in parts.values() for e in entries):
        return content
    images = _images(file, parts['images'], names, size_of, changes)
    categories = _categories(file, parts['categories'], changes)
    image_ids = _new_ids(file, 'image', images, changes)
    category_ids = _new_ids(file, 'category', categories, changes)
    annotations = _annotations(
        file,
        parts['annotations'],
        _references(parts['images'], images, image_ids),
        _references(parts['categories'], categories, category_ids, by_name=True),
        {image['id']: image for image in images if isinstance(image.get('id'), IDS)},
        changes,
    )
    return dict(content, images=images, annotations=annotations, categories=categories)


def _images(file, entries, names, size_of, changes) -> list[dict]:
    images = []
    for entry, name in zip(entries, names):
        where = f'image {entry.get("id")!r}'
        image = dict(entry, file_name=name) if name else dict(entry)
        if name and not isinstance(entry.get('file_name'), str):
            changes.add(file, 'file_name', where, entry.get('file_name'), name)
        for side in ('width', 'height'):
            _set(image, side, _plain(image.get(side)), changes, file, where)
        if not all(_positive(image.get(side)) for side in ('width', 'height')):
            size = size_of(name) if name else None
            for side, value in zip(('width', 'height'), size or ()):
                if not _positive(image.get(side)):
                    _set(image, side, value, changes, file, where)
        images.append(image)
    return images


def _categories(file, entries, changes) -> list[dict]:
    categories = [dict(entry) for entry in entries]
    for category in categories:
        if type(category.get('name')) in (int, float):
            where = f'category {category.get("id")!r}'
            _set(category, 'name', str(category['name']), changes, file, where)
    return categories


def _new_ids(file, part, entries, changes, least=None) -> dict | None:
    """Writes ids into entries that have others; the new ones by the keys of the old ones."""
    if not all(isinstance(e.get('id'), IDS) for e in entries):
        return None
    new = renumber(file, part, [e['id'] for e in entries], least, changes)
    if new is not None:
        for entry in entries:
            entry['id'] = new[key(entry['id'])]
    return new


def _references(before, after, new, by_name=False) -> dict:
    """Ids of entries by the keys of what annotations may refer to them by."""
    found: dict = {}
    for old, entry in zip(before, after):
        found.setdefault(key(old.get('id')), entry.get('id'))
    if new is None and len(found) < len(after):
        return {}
    if by_name:
        for entry in after:
            found.setdefault(str(entry.get('name')), entry.get('id'))
    return found


def _annotations(file, entries, image_ids, category_ids, images, changes) -> list[dict]:
    # Of a million annotations with nothing to change none is copied.
    known = [
        {new for old, new in ids.items() if type(new) is int and old == str(new)}
        if all(type(new) is int for new in ids.values())
        else set()
        for ids in (image_ids, category_ids)
    ]
    annotations = []
    for entry in entries:
        if _is_complete(entry, *known):
            annotations.append(entry)
            continue
        annotation = dict(entry)
        where = f'annotation {entry.get("id")!r}'
        for field, ids in (('image_id', image_ids), ('category_id', category_ids)):
            value = annotation.get(field)
            if value is not None:
                _set(annotation, field, ids.get(key(value), value), changes, file, where)
        image_id = annotation.get('image_id')
        image = images.get(image_id, {}) if isinstance(image_id, IDS) else {}
        _complete(annotation, (image.get('width'), image.get('height')), file, where, changes)
        annotations.append(annotation)
    return _numbered(file, annotations, changes)


def _is_complete(annotation: dict, image_ids: set, category_ids: set) -> bool:
    """Whether an annotation has all its fields; the sets hold the ids that are as they were."""
    box = annotation.get('bbox')
    return (
        type(annotation.get('image_id')) is int
        and annotation['image_id'] in image_ids
        and type(annotation.get('category_id')) is int
        and annotation['category_id'] in category_ids
        and type(box) is list
        and len(box) == 4
        and all(type(value) in (int, float) for value in box)
        and _is_finite(annotation.get('area'))
        and type(annotation.get('iscrowd')) in (int, float)
    )


def _numbered(file, annotations, changes) -> list[dict]:
    """Nothing refers to ids of annotations, so that they can always be numbered."""
    ids = [annotation.get('id') for annotation in annotations]
    fine = all(type(i) is int and i >= 1 for i in ids) and len(set(ids)) == len(ids)
    if not fine:
        for new, old in enumerate(ids, 1):
            changes.add(file, 'annotation ids', f'annotation {old!r}', old, new)
        annotations = [dict(a, id=new) for new, a in enumerate(annotations, 1)]
    return annotations


def _complete(annotation, size, file, where, changes) -> None:
    """Box, area and iscrowd as numbers, computed where they are missing."""
    box = annotation.get('bbox')
    if isinstance(box, (list, tuple)) and len(box) == 4:
        if any(isinstance(v, (str, bool)) for v in box):
            _set(annotation, 'bbox', [_plain(v) for v in box], changes, file, where)
    elif not box and all(map(_positive, size)):
        computed = box_of(annotation, size)
        if computed is not None:
            _set(annotation, 'bbox', computed, changes, file, where)
    box = annotation.get('bbox')
    if not _is_finite(annotation.get('area')):
        area = _plain(annotation.get('area'))
        numbers = isinstance(box, list) and len(box) == 4
        numbers = numbers and all(type(v) in (int, float) for v in box)
        if not _is_finite(area) and numbers and all(map(_positive, size)):
            area = area_of(annotation, box, size)
        _set(annotation, 'area', area, changes, file, where)
    if type(annotation.get('iscrowd')) not in (int, float):
        crowd = annotation.get('iscrowd')
        _set(annotation, 'iscrowd', 0 if crowd is None else _plain(crowd), changes, file, where)


def _plain(value):
    """A number for text; what is a number stays as it is."""
    return number(value) if isinstance(value, (str, bool)) else value


def _is_finite(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _positive(value) -> bool:
    return type(value) in (int, float) and value > 0


def _set(entry, field, value, changes, file, where) -> None:
    """Sets a field, and says so, where the value is another one."""
    before = entry.get(field)
    # NaN is not equal to itself.
    if value is before or type(before) is type(value) and before == value or value is None:
        return
    entry[field] = value
    changes.add(file, field, where, before, value)
