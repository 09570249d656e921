"""Where an image may be that is not where its annotation file says."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ddetr_plugin.datasets.image_files import IMAGE_SUFFIXES

__all__ = ['Whereabouts', 'dataset_folder']

# Entries of folders that are looked through.
MOST = 100_000
# Folders that hold annotation files, and not the data set.
ANNOTATION_FOLDERS = ('annotations', 'annotation', 'labels', 'ann')


def dataset_folder(ann_file: Path) -> Path:
    """The folder that a data set with this annotation file is likely to be."""
    folder = ann_file.parent
    return folder.parent if folder.name.lower() in ANNOTATION_FOLDERS else folder


class Whereabouts:
    """The images below some folders, looked through once and only when something is missing.

    Args:
        folders: where to look; those that do not exist are left out.
    """

    def __init__(self, folders: Iterable[Path]):
        self.folders = list(dict.fromkeys(Path(folder) for folder in folders))

    @cached_property
    def _images(self) -> dict[str, list[Path]]:
        """The files by their names in small letters, without suffix."""
        found: dict[str, dict[Path, None]] = {}
        for path in _images_below(self.folders):
            found.setdefault(path.stem.lower(), {})[path] = None
        return {stem: list(paths) for stem, paths in found.items()}

    def hint(self, folder: Path, name: str) -> str | None:
        """Where the file may be, in words; None if there is nothing like it.

        Args:
            folder: that `name` is relative to.
            name: a path that is not there.
        """
        for other, reason in _spellings(name):
            if other != name and (folder / other).is_file():
                return f'there is {other!r}: {reason}'
        base = PurePosixPath(_plain(name)).name
        stem, suffix = os.path.splitext(base)
        similar = self._images.get(stem.lower(), [])
        for fits, reason in (
            (lambda path: path.name == base, ''),
            (lambda path: path.stem == stem and path.suffix.lower() == suffix.lower(), 'suffix'),
            (lambda path: path.name.lower() == base.lower(), 'name'),
            (lambda path: path.stem == stem, 'format'),
        ):
            paths = sorted(filter(fits, similar))
            if len(paths) > 1:
                return f'{len(paths)} files are called so, such as {paths[0]} and {paths[1]}'
            if paths:
                notes = dict(
                    suffix=f', whose suffix is written {paths[0].suffix}',
                    name=', whose name differs in capitals',
                    format=f', a {paths[0].suffix} file',
                )
                return f'there is {paths[0]}{notes.get(reason, "")}'
        return None

    def folder_of(self, names: Sequence[str]) -> tuple[Path, int] | None:
        """The folder that most of the `names` are relative to, and how many; None without any."""
        counts: Counter[Path] = Counter()
        for name in names:
            parts = PurePosixPath(name).parts
            for path in self._images.get(PurePosixPath(name).stem.lower(), ()):
                if parts and path.parts[-len(parts) :] == parts:
                    counts[Path(*path.parts[: -len(parts)])] += 1
        return counts.most_common(1)[0] if counts else None


def _images_below(folders: Sequence[Path]) -> Iterator[Path]:
    left = MOST
    for root in folders:
        for folder, below, names in os.walk(root):
            below[:] = sorted(name for name in below if not name.startswith('.'))
            left -= len(below) + len(names)
            if left < 0:
                return
            for name in names:
                if name.lower().endswith(IMAGE_SUFFIXES):
                    yield Path(folder, name)


def _plain(name: str) -> str:
    """A name as a path of this machine, whatever program wrote it."""
    return unquote(name).replace('\\', '/')


def _spellings(name: str) -> Iterator[tuple[str, str]]:
    yield unquote(name), 'the name is URL-encoded'
    yield name.replace('\\', '/'), 'the name has \\ instead of /'
    yield _plain(name), 'the name is URL-encoded and has \\ instead of /'
    yield name.strip(), 'the name has spaces around it'
