"""From the names of images in an annotation file to the files they mean."""

import filecmp
from collections import defaultdict
from pathlib import Path, PurePosixPath

from PIL import Image

from ddetr_plugin.data_checks import Finding
from ddetr_plugin.datasets.image_files import UnreadableImageError, decode_image
from ddetr_plugin.intake.changes import Changes
from ddetr_plugin.intake.tree import Tree, split_of

__all__ = ['image_size', 'locate_images']

EXIF_ORIENTATION = 0x0112
# Formats of which OpenCV and Pillow agree on the size where nothing turns the image.
PLAIN = ('JPEG', 'PNG', 'BMP')
COMPARED = 20  # images of two folders


def locate_images(
    file: Path, names: list[str], tree: Tree, changes: Changes, folder: Path | None = None
) -> tuple[Path, list[str], list[Finding]]:
    """The folder of a split's images, and their names in it.

    Where one folder holds them under their names, names stay as they are; else they become relative
    to the folder of the data set. A name that no file or several files fit stays, too.

    Args:
        file: the annotation file.
        names: of the images, as it has them.
        tree: of the data set.
        changes: gets what is changed.
        folder: that the names are relative to, if that is known.

    Returns:
        (folder, names, findings): the findings are about names that fit several files.

    Raises:
        ValueError: several folders hold all the images, and they are not the same.
    """
    near = tree.relative(file.parent)
    split, word = split_of(tree.relative(file)) or (None, '')
    base = tree.relative(folder) if folder else _base(file, names, tree, near, split, word)
    prefix = '' if base in (None, '.') else f'{base}/'
    folder = tree.root / prefix
    missing = [] if base is None else [n for n in names if f'{prefix}{n}' not in tree.present]
    if base is not None and not missing:
        return folder, names, []
    searched = {name: tree.find(name, split, near) for name in (missing or names)}
    findings = _ambiguous(file, searched, tree)
    found = {name: files[0] for name, files in searched.items() if len(files) == 1}
    if not found or findings:
        return folder, names, findings
    located = []
    for number, name in enumerate(names):
        new = found.get(name, name if name in searched else f'{prefix}{name}')
        if name in found:
            changes.add(file, 'names of images', f'image {number}', name, new)
        located.append(new)
    return tree.root, located, []


def image_size(path: Path) -> tuple[int, int] | None:
    """(width, height) in pixels as trainings decode it, turned by EXIF; None if nothing can."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(EXIF_ORIENTATION, 1) != 1
            if image.format in PLAIN and not turned:
                return image.size
    except Exception:  # Pillow's plugins raise whatever they like; OpenCV may still read it
        pass
    try:
        height, width = decode_image(path.read_bytes()).shape[:2]
    except (OSError, UnreadableImageError):
        return None
    return width, height


def _base(file, names, tree, near, split, word) -> str | None:
    """The folder that holds most images under their names; None if none holds any."""
    own = ['images', 'data', 'img', 'JPEGImages', '']
    # Case may differ: images/Train for instances_Train.json.
    folders = {str(PurePosixPath(image).parent) for image in tree.images}
    of_split = {f for f in folders if word and word in PurePosixPath(f).name.lower()}
    sub = file.stem.rpartition('_')[2].lower()  # CVAT: images/<subset> for instances_<subset>.json
    of_split |= {f for f in folders if PurePosixPath(f).name.lower() == sub}
    beside = [str(PurePosixPath(near, name)) for name in own]
    above = str(PurePosixPath(near).parent)
    general = [str(PurePosixPath(above, name)) for name in own] if near != '.' else []
    candidates = [*sorted(of_split), *beside, *general, *own[:-1], '.']
    # Split by its annotations alone: all images may be in a folder of any name.
    first = tree.find(names[0]) if names else ()
    counts = {}
    for candidate in dict.fromkeys(str(PurePosixPath(c)) for c in candidates):
        prefix = '' if candidate == '.' else f'{candidate}/'
        counts[candidate] = sum(f'{prefix}{name}' in tree.present for name in names)
    for path in first:
        if not path.endswith(names[0]):
            continue
        candidate = path[: -len(names[0])].rstrip('/') or '.'
        prefix = '' if candidate == '.' else f'{candidate}/'
        if all(f'{prefix}{name}' in tree.present for name in names):
            counts.setdefault(candidate, len(names))
    counts = {folder: count for folder, count in counts.items() if count}
    # A folder of another split holds the images only where no other one holds any.
    fitting = {f: c for f, c in counts.items() if split is None or _split(f, split) == split}
    counts = fitting or counts
    if not counts:
        return None
    best = [folder for folder, count in counts.items() if count == max(counts.values())]
    best = [folder for folder in best if split and _split(folder) == split] or best
    for other in best[1:]:
        if not _same(tree.root / best[0], tree.root / other, names):
            raise ValueError(
                f'{file}: its images are in several folders, and they differ: '
                f'{", ".join(str(tree.root / f) for f in best)}. Leave one of them in {tree.root}'
            )
    return best[0]


def _split(folder: str, default: str | None = None) -> str | None:
    return (split_of(folder) or (default,))[0]


def _same(folder: Path, other: Path, names: list[str]) -> bool:
    if folder.resolve() == other.resolve():
        return True
    shared = [n for n in names if (folder / n).is_file() and (other / n).is_file()]
    return all(filecmp.cmp(folder / n, other / n, shallow=False) for n in shared[:COMPARED])


def _ambiguous(file: Path, searched: dict[str, tuple], tree: Tree) -> list[Finding]:
    """Names that fit several files, and files that several names fit."""
    findings = []
    owners = defaultdict(list)
    for name, files in searched.items():
        if len(files) > 1:
            shown = ', '.join(str(tree.root / f) for f in files[:5])
            findings.append(
                Finding(
                    'error',
                    'names that several images fit',
                    str(file),
                    'image',
                    name,
                    f'{name!r} may be {shown}{", ..." if len(files) > 5 else ""}',
                    'write the path from the folder of the data set into file_name, or leave one '
                    'of these images there',
                )
            )
        elif files:
            owners[files[0]].append(name)
    for path, names in owners.items():
        if len(names) > 1:
            findings.append(
                Finding(
                    'error',
                    'images that several names fit',
                    str(file),
                    'image',
                    names[0],
                    f'{tree.root / path} may be {", ".join(map(repr, names[:5]))}',
                    'put the other images there, or remove them from the annotations',
                )
            )
    return findings
