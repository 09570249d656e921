"""Which files are predicted, and what their results are called."""

import glob
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ddetr_plugin.apis.video import is_video
from ddetr_plugin.datasets.image_files import IMAGE_SUFFIXES

__all__ = ['find_images', 'name_results']

NAMED = 3  # files of one kind that a message names


def find_images(
    pattern: str | os.PathLike, recursive: bool = False, skip: Path | None = None
) -> tuple[list[Path], list[str]]:
    """The image files that a path, a folder or a glob names.

    Args:
        pattern: one file of any kind, a folder, or a glob, whose files are all taken.
        recursive: look into the folders below a folder, too.
        skip: a folder below, whose files are not taken: that of earlier results.

    Returns:
        (files, sorted; what was left out of a folder, a line for each kind of file).

    Raises:
        FileNotFoundError: there is none; the message says what was left out.
    """
    path = Path(pattern)
    left_out: list[str] = []
    if path.is_file():
        found = [path]
    elif path.is_dir():
        entries = sorted(path.rglob('*') if recursive else path.iterdir())
        if skip is not None and path.resolve() in skip.resolve().parents:
            own = skip.resolve()
            entries = [e for e in entries if own != e.resolve() and own not in e.resolve().parents]
        found = [e for e in entries if e.suffix.lower() in IMAGE_SUFFIXES and e.is_file()]
        left_out = _describe_left_out(path, set(entries) - set(found), recursive)
    else:
        found = sorted(p for p in map(Path, glob.glob(str(pattern), recursive=True)) if p.is_file())
    if not found:
        if path.is_dir():
            reasons = f'; left out: {"; ".join(left_out)}' if left_out else ', which is empty'
            raise FileNotFoundError(f'there is no image in the folder {path}{reasons}')
        raise FileNotFoundError(
            f'{pattern} is no file, no folder with images, and no glob of files'
        )
    return found, left_out


def _describe_left_out(folder: Path, entries: set[Path], recursive: bool) -> list[str]:
    kinds = defaultdict(list)
    for entry in sorted(entries):
        if entry.is_dir():
            if not recursive:
                kinds['folders (--recursive looks into them)'].append(entry)
        else:
            kinds[f'{entry.suffix.lower() or "unnamed kind of"} files'].append(entry)
    lines = []
    for kind, paths in kinds.items():
        names = [path.relative_to(folder).as_posix() for path in paths[:NAMED]]
        more = ', ...' if len(paths) > NAMED else ''
        lines.append(f'{len(paths)} {kind}: {", ".join(names)}{more}')
    return lines


def name_results(images: Sequence[Path], out: Path) -> list[tuple[Path, Path, Path]]:
    """What the results of each image are called.

    Returns:
        list of (path, name below the folder that holds all images, file to draw to).

    Raises:
        ValueError: an image would be overwritten.
    """
    folder = Path(os.path.commonpath([path.absolute().parent for path in images]))
    named = []
    for path in images:
        name = path.absolute().relative_to(folder)
        # Its own suffix where that can be drawn to, so that a.jpg and a.png stay apart.
        drawable = name.suffix.lower() in ('.jpg', '.jpeg', '.png', '.mp4')
        suffix = '' if drawable else '.mp4' if is_video(path) else '.png'
        named.append((path, name, out / f'{name}{suffix}'))
    taken = {path.resolve(): path for path in images}
    originals = set(taken)
    for path, _, target in named:
        other = taken.setdefault(target.resolve(), path)
        if target.resolve() in originals:
            raise ValueError(f'{target} would be overwritten; name another folder with --out')
        if other != path:
            raise ValueError(
                f'{other} and {path} would both be drawn to {target}; predict one of them alone'
            )
    return named
