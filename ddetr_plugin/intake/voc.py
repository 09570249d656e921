"""Pascal VOC's format: an XML file for every image, and maybe ImageSets/Main with the splits."""

import math
import re
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from ddetr_plugin.intake.building import Builder
from ddetr_plugin.intake.changes import Changes
from ddetr_plugin.intake.images import image_size
from ddetr_plugin.intake.tree import Tree, split_of

__all__ = ['read_voc']

ANNOTATION = re.compile(rb'<annotation[\s>]')
HEAD = 4096  # bytes
SETS = ('train', 'trainval', 'val', 'test')  # files of ImageSets/Main


def read_voc(tree: Tree, changes: Changes) -> tuple[dict[str, Builder], list[str]] | None:
    """The splits of a folder by 'train', 'val' and 'test', and the class names; None without VOC.

    Corners are taken as they stand, as tools write them, but those of Pascal VOC itself count
    pixels from 1 and include the last. What is `difficult` is neither learned nor scored, as in
    VOC's own evaluation. Classes are in alphabetical order.
    """
    files = [name for name in tree.with_suffix('.xml') if _is_voc(tree.root / name)]
    if not files:
        return None
    builders: dict[str, Builder] = {}
    for name, split in _splits(files, tree).items():
        builder = builders.setdefault(split, Builder(tree.root / PurePosixPath(name).parent))
        _read_file(builder, name, tree, changes)
    return builders, sorted(set().union(*(builder.names for builder in builders.values())))


def _is_voc(path: Path) -> bool:
    with path.open('rb') as file:
        return ANNOTATION.search(file.read(HEAD).replace(b'\0', b'')) is not None


def _splits(files: list[str], tree: Tree) -> dict[str, str]:
    """The split of every file: by ImageSets/Main, else by the words of its folders."""
    listed: dict[str, set[str]] = {}
    for name in tree.with_suffix('.txt'):
        path = PurePosixPath(name)
        if path.parent.name == 'Main' and path.stem in SETS:
            lines = (tree.root / name).read_text(encoding='utf-8-sig').splitlines()
            words = [line.split() for line in lines if line.strip()]
            listed[path.stem] = {line[0] for line in words if line[-1] != '-1'}
    if not listed:
        groups = {
            name: (split_of(str(PurePosixPath(name).parent)) or ('train',))[0] for name in files
        }
        return groups if 'train' in groups.values() else dict.fromkeys(files, 'train')
    train = listed['train'] if 'train' in listed else listed.get('trainval', set())
    if not train:
        raise ValueError(
            f'{tree.root}: ImageSets/Main has no train.txt or trainval.txt with names in it, only '
            f'{", ".join(f"{name}.txt" for name in listed)}. Add one, or remove the folder'
        )
    stems = {name: PurePosixPath(name).stem for name in files}
    return {
        name: split
        for name, stem in stems.items()
        for split, known in (
            ('train', train),
            ('val', listed.get('val', set()) - train),
            ('test', listed.get('test', set()) - train - listed.get('val', set())),
        )
        if stem in known
    }


def _read_file(builder: Builder, name: str, tree: Tree, changes: Changes) -> None:
    path = tree.root / name
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        builder.refuse(path, 'XML that cannot be read', str(error), 'write or export it again')
        return
    image = _find_image(builder, root, name, tree)
    size = tuple(_number(root, f'size/{side}') or 0 for side in ('width', 'height'))
    if not all(side > 0 for side in size):
        size = image_size(tree.root / image) or (1, 1)
        changes.add(builder.file, 'sizes of images', name, None, size)
    image_id = builder.add_image(image, *map(int, size))
    database = root.findtext('source/database') or ''
    official = database.startswith('The VOC')
    for entry in root.findall('object'):
        label = (entry.findtext('name') or '').strip()
        stated = [_number(entry, f'bndbox/{k}') for k in ('xmin', 'ymin', 'xmax', 'ymax')]
        corners = [value for value in stated if value is not None]
        if not label or len(corners) < len(stated):
            builder.refuse(
                path,
                'objects without a name or a box',
                f'name {label!r}, bndbox {stated}',
                'an object has a name and a bndbox of xmin, ymin, xmax and ymax in pixels',
            )
            continue
        left, top, right, bottom = corners
        if official:
            left, top = left - 1, top - 1
        more = {}
        if (entry.findtext('difficult') or '0').strip() not in ('0', ''):
            more['iscrowd'] = 1
            changes.add(builder.file, 'difficult objects are ignored', name, 'difficult', 'iscrowd')
        builder.add_box(image_id, label, [left, top, right - left, bottom - top], **more)


def _find_image(builder: Builder, root, name: str, tree: Tree) -> str:
    """The image that a file is about, relative to the tree; its stated name if there is none."""
    path = PurePosixPath(name)
    stated = (root.findtext('filename') or '').strip() or path.stem
    near, split = str(path.parent), (split_of(name) or (None,))[0]
    found = tree.find(stated, split, near)
    by_file = tree.find(str(PurePosixPath(near, path.stem)), split, near)
    # The name of the XML file is the image's, unless there is no such image.
    choices = by_file or found
    if len(choices) == 1 and (not found or choices[0] in found):
        return choices[0]
    if len(set(found) & set(by_file)) == 1:
        return (set(found) & set(by_file)).pop()
    choices = tuple(dict.fromkeys(found + by_file))
    if len(choices) > 1:
        builder.refuse(
            tree.root / name,
            'names that several images fit',
            f'filename {stated!r} may be {", ".join(str(tree.root / c) for c in choices[:5])}',
            'correct filename, or leave one of these images there',
        )
    return choices[0] if choices else stated


def _number(root, path: str) -> float | None:
    try:
        value = float(root.findtext(path) or '')
    except ValueError:
        return None
    return value if math.isfinite(value) else None
