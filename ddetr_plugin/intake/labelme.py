"""LabelMe's own format: a JSON file of shapes for every image."""

import math
from pathlib import PurePosixPath

from ddetr_plugin.data_checks import read_json
from ddetr_plugin.intake.building import Builder
from ddetr_plugin.intake.changes import Changes
from ddetr_plugin.intake.classes import NO_OBJECTS
from ddetr_plugin.intake.images import image_size
from ddetr_plugin.intake.sources import is_labelme
from ddetr_plugin.intake.tree import Tree, split_of

__all__ = ['read_labelme']

CORNERS = 12  # of the polygon that stands for a circle


def read_labelme(tree: Tree, changes: Changes) -> tuple[dict[str, Builder], list[str]] | None:
    """The splits of a folder by 'train', 'val' and 'test', and the class names; None without any.

    Shapes of one label and `group_id` are one object. Points and lines are left out. Classes are in
    alphabetical order.
    """
    files = [name for name in tree.with_suffix('.json') if is_labelme(tree.root / name)]
    if not files:
        return None
    groups = {n: (split_of(str(PurePosixPath(n).parent)) or ('train',))[0] for n in files}
    if 'train' not in groups.values():
        groups = dict.fromkeys(files, 'train')
    builders: dict[str, Builder] = {}
    for name, split in groups.items():
        builder = builders.setdefault(split, Builder(tree.root / PurePosixPath(name).parent))
        _read_file(builder, name, tree, changes)
    return builders, sorted(set().union(*(builder.names for builder in builders.values())))


def _read_file(builder: Builder, name: str, tree: Tree, changes: Changes) -> None:
    path = tree.root / name
    try:
        content = read_json(path)
        shapes = [dict(shape) for shape in content['shapes']]
        stated = str(content.get('imagePath') or '') or path.stem
    except (KeyError, TypeError, ValueError) as error:
        builder.refuse(path, 'LabelMe files that cannot be read', str(error), 'save it again')
        return
    near, split = str(PurePosixPath(name).parent), (split_of(name) or (None,))[0]
    found = tree.find(stated, split, near) or tree.find(f'{near}/{path.stem}', split, near)
    if len(found) > 1:
        builder.refuse(
            path,
            'names that several images fit',
            f'imagePath {stated!r} may be {", ".join(str(tree.root / f) for f in found[:5])}',
            'correct imagePath, or leave one of these images there',
        )
    image = found[0] if found else stated
    size = (content.get('imageWidth'), content.get('imageHeight'))
    if not all(type(side) in (int, float) and side > 0 for side in size):
        size = image_size(tree.root / image) or (1, 1)
        changes.add(builder.file, 'sizes of images', name, None, size)
    image_id = builder.add_image(image, *size)
    objects: dict[tuple, list[list[float]]] = {}
    for number, shape in enumerate(shapes):
        label, kind = str(shape.get('label')), shape.get('shape_type') or 'polygon'
        polygon = None if label in NO_OBJECTS else _polygon(kind, shape.get('points'))
        if polygon is None:
            changes.add(
                builder.file, 'shapes left out that are no objects', name, f'{kind} {label!r}', None
            )
            continue
        group = shape.get('group_id')
        objects.setdefault((label, number if group is None else f'group {group}'), []).append(
            polygon
        )
    for (label, _), polygons in objects.items():
        builder.add_polygons(image_id, label, polygons)


def _polygon(kind: str, points) -> list[float] | None:
    """[x, y, x, y, ...] around a shape; None for points, lines and what is no shape."""
    try:
        pairs = [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError):
        return None
    if kind == 'circle' and len(pairs) == 2:
        (x, y), edge = pairs
        radius = math.dist((x, y), edge)
        # Four of them are the outermost points of the circle.
        turns = [2 * math.pi * i / CORNERS for i in range(CORNERS)]
        pairs = [(x + radius * math.cos(t), y + radius * math.sin(t)) for t in turns]
    elif kind in ('rectangle', 'mask') and len(pairs) >= 2:
        xs, ys = zip(*pairs)
        left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
        pairs = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind != 'polygon' or len(pairs) < 3:
        return None
    return [value for pair in pairs for value in pair]
