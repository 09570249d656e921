"""YOLO's format: data.yaml, or a list of class names, and a text file of labels for every image.

As Ultralytics' documentation describes it, and as Roboflow, CVAT and Label Studio export it. A line
is a class and, in shares of the image's width and height, the centre, width and height of a box, or
the points of a polygon.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import yaml

from ddetr_plugin.datasets.image_files import IMAGE_SUFFIXES
from ddetr_plugin.intake.building import Builder
from ddetr_plugin.intake.images import image_size
from ddetr_plugin.intake.tree import SPLIT_WORDS, Tree, split_of

__all__ = ['read_yolo']

NAME_LISTS = ('classes.txt', 'obj.names', '.names', 'labels.txt')  # ends of files, a name a line
LABEL = re.compile(r'\s*\d+(\s+[-+.\deE]+){4,}\s*$')
OUTSIDE = 0.01  # shares by which labels may leave the image, by rounding


def read_yolo(tree: Tree) -> tuple[dict[str, Builder], list[str]] | None:
    """The splits of a folder by 'train', 'val' and 'test', and the class names; None without YOLO.

    Raises:
        ValueError: it is YOLO's format, but class names or the folders of images are missing, or
            are several.
    """
    labels = [name for name in tree.with_suffix('.txt') if _is_label(tree.root / name)]
    settings = _settings(tree)
    if settings is None and not labels:
        return None
    file, content = settings or (tree.root, {})
    names = _class_names(content, tree, file)
    by_stem: dict[str, list[str]] = {}
    for name in tree.with_suffix('.txt'):
        by_stem.setdefault(PurePosixPath(name).stem, []).append(name)
    splits = {}
    for split, images in _split_images(content, tree, file).items():
        builder = Builder(file)
        if any(_labels_of(image, by_stem, tree) for image in images):
            for image in images:
                _read_image(builder, image, _labels_of(image, by_stem, tree), names, content, tree)
            splits[split] = builder
    if 'train' not in splits:
        raise ValueError(
            f'{file}: none of the images to train on has a label file. Labels of '
            'images/train/a.jpg are expected in labels/train/a.txt, or beside it'
        )
    return splits, names


def _settings(tree: Tree) -> tuple[Path, dict] | None:
    found = []
    for name in tree.with_suffix('.yaml', '.yml'):
        content, _ = _load_yaml(tree.root / name)
        if isinstance(content, dict) and {'names', 'nc'} & content.keys() and 'train' in content:
            found.append((tree.root / name, content))
    shallow = [f for f in found if f[0].parent == tree.root] or found
    if len(shallow) > 1 and any(f[1] != shallow[0][1] for f in shallow):
        raise ValueError(
            f'{tree.root} has several YAML files of data sets: '
            f'{", ".join(str(f[0]) for f in shallow)}. Leave one of them there'
        )
    return shallow[0] if shallow else None


def _load_yaml(path: Path) -> tuple[object, str | None]:
    """What a YAML file holds, or None and why it cannot be read, in a line."""
    try:
        return yaml.safe_load(path.read_text(encoding='utf-8-sig')), None
    except (OSError, ValueError, yaml.YAMLError) as error:
        return None, ' '.join(str(error).split())


def _class_names(content: dict, tree: Tree, file: Path) -> list[str]:
    names = content.get('names')
    if isinstance(names, dict):
        try:
            names = {int(number): name for number, name in names.items()}
        except (TypeError, ValueError):
            raise ValueError(f'{file}: names should be numbered, got {names}') from None
        # A number that is left out is a class without a name.
        names = [names.get(n, f'class {n}') for n in range(max(names, default=-1) + 1)]
    elif names is None and isinstance(content.get('nc'), int):
        names = [f'class {n}' for n in range(content['nc'])]
    elif names is None:
        lists = [n for n in tree.files if n.lower().endswith(NAME_LISTS)]
        lists = [n for n in lists if not _is_label(tree.root / n)]
        contents = {(tree.root / n).read_text(encoding='utf-8-sig').strip() for n in lists}
        if len(contents) != 1:
            found = (
                f'several lists of classes: {", ".join(lists)}' if contents else 'no class names'
            )
            reasons = {n: _load_yaml(tree.root / n)[1] for n in tree.with_suffix('.yaml', '.yml')}
            broken = [f'{n} cannot be read ({why}). ' for n, why in reasons.items() if why]
            raise ValueError(
                f'{tree.root} has labels as YOLO has them, but {found}. {"".join(broken)}Write one '
                'classes.txt, a name a line, or a data.yaml'
            )
        names = [line.strip() for line in contents.pop().splitlines()]
    if not isinstance(names, list) or not names:
        raise ValueError(f'{file}: names should be a list of class names, got {names!r}')
    names = [str(name) for name in names]
    if len(set(names)) < len(names):
        raise ValueError(f'{file}: class names should be unique, got {names}')
    return names


def _split_images(content: dict, tree: Tree, file: Path) -> dict[str, list[Path]]:
    """The images of every split."""
    if content:
        keys = {split: content.get(split) for split in ('train', 'val', 'test')}
        keys['val'] = keys['val'] or content.get('valid') or content.get('validation')
        return {
            split: list(
                dict.fromkeys(
                    image
                    for entry in (value if isinstance(value, list) else [value])
                    for image in _images_of(str(entry), split, content, tree, file)
                )
            )
            for split, value in keys.items()
            if value
        }
    groups: dict[str, list[Path]] = {}
    for image in tree.images:
        split = (split_of(image) or ('train',))[0]
        groups.setdefault(split, []).append(tree.root / image)
    return groups if 'train' in groups else dict(train=[p for g in groups.values() for p in g])


def _images_of(entry: str, split: str, content: dict, tree: Tree, file: Path) -> list[Path]:
    """The images of a folder, of a text file that lists them, or of a pattern."""
    entry = entry.replace('\\', '/')
    root = Path(str(content.get('path') or '.').replace('\\', '/'))
    bases = [file.parent / root, file.parent, tree.root]
    # Exports name folders of the machine that they were made on: what is left of such a path.
    parts = [part for part in entry.split('/') if part not in ('', '.', '..')]
    ends = ['/'.join(parts[start:]) for start in range(len(parts))]
    ends += [f'{word}/images' for word in SPLIT_WORDS[split]]
    for base, path in [(b, e) for e in (entry, *ends) for b in bases]:
        place = base / path
        if place.is_dir():
            images = [p for p in sorted(place.rglob('*')) if p.suffix.lower() in IMAGE_SUFFIXES]
            if images:
                return images
        elif place.is_file() and place.suffix == '.txt':
            return list(_listed(place, tree))
        elif '*' in path:
            images = [p for p in sorted(base.glob(path)) if p.suffix.lower() in IMAGE_SUFFIXES]
            if images:
                return images
    if split == 'test':
        return []
    raise ValueError(
        f'{file}: there are no images in {entry} ({split}); looked below '
        f'{", ".join(dict.fromkeys(map(str, bases)))}. Correct {split} or path in it'
    )


def _listed(file: Path, tree: Tree) -> Iterator[Path]:
    for line in file.read_text(encoding='utf-8-sig').splitlines():
        name = line.strip()
        if name:
            beside = file.parent / name
            found = tree.find(name) if not beside.is_file() else (str(beside),)
            # What is missing, or not clear, is for the checks to find.
            yield tree.root / (found[0] if len(found) == 1 else name)


def _labels_of(image: Path, by_stem: dict, tree: Tree) -> Path | None:
    """The label file of an image: in `labels` where it is in `images`, beside it, or unique."""
    parts = list(image.parts)
    if 'images' in parts:
        last = len(parts) - 1 - parts[::-1].index('images')
        beside = Path(*parts[:last], 'labels', *parts[last + 1 :]).with_suffix('.txt')
        if beside.is_file():
            return beside
    beside = image.with_suffix('.txt')
    if beside.is_file():
        return beside
    found = by_stem.get(image.stem, [])
    own = split_of(tree.relative(image))
    found = [name for name in found if (split_of(name) or own) == own]
    return tree.root / found[0] if len(found) == 1 else None


def _is_label(path: Path) -> bool:
    with path.open('rb') as file:
        lines = file.read(400).decode('utf-8-sig', 'replace').splitlines()
    # The last one may be cut.
    return any(LABEL.match(line) for line in lines[:1])


def _read_image(
    builder: Builder, image: Path, labels: Path | None, names: list, content: dict, tree: Tree
) -> None:
    size = image_size(image)
    # An image that is missing or broken is for the checks to find.
    image_id = builder.add_image(tree.relative(image), *(size or (1, 1)))
    if labels is None or size is None:
        return
    for number, line in enumerate(labels.read_text(encoding='utf-8-sig').splitlines(), 1):
        if line.strip():
            fault = _read_line(builder, image_id, size, line.split(), names, content)
            if fault:
                builder.refuse(
                    labels,
                    'labels that cannot be read',
                    f'line {number}, {line.strip()[:60]!r}: {fault}',
                    'a line is a class and x y width height of a box, or x y of every point of a '
                    'polygon, in shares of the image from 0 to 1',
                )


def _read_line(builder, image_id, size, words, names, content) -> str | None:
    """Adds what a line says; returns what is wrong with it, if anything."""
    try:
        label, *values = map(float, words)
    except ValueError:
        return 'not all are numbers'
    if label not in range(len(names)):
        return f'there are classes from 0 to {len(names) - 1}'
    keypoints = math.prod(content.get('kpt_shape') or (0,))
    if keypoints and len(values) == 4 + keypoints:
        values = values[:4]
    if len(values) < 4 or len(values) > 4 and len(values) % 2:
        return f'has {len(values)} numbers after the class'
    if not all(-OUTSIDE <= value <= 1 + OUTSIDE for value in values):
        return 'not all are from 0 to 1'
    width, height = size
    name = names[int(label)]
    if len(values) == 4:
        x, y, w, h = values
        left, right = (min(max(v, 0), 1) * width for v in (x - w / 2, x + w / 2))
        top, bottom = (min(max(v, 0), 1) * height for v in (y - h / 2, y + h / 2))
        builder.add_box(image_id, name, [left, top, right - left, bottom - top])
    else:
        inside = [min(max(value, 0), 1) for value in values]
        scaled = [value * (height if i % 2 else width) for i, value in enumerate(inside)]
        builder.add_polygons(image_id, name, [scaled])
    return None
