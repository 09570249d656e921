"""The files of a data set's folder, found once, and images looked up among them by name."""

import math
import os
import re
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from ddetr_plugin.datasets.image_files import IMAGE_SUFFIXES

__all__ = ['Tree', 'split_of']

# Words in names of files and folders that say which split they are of, the likelier ones first.
SPLIT_WORDS = dict(
    train=('train', 'training'), val=('val', 'valid', 'validation', 'dev'), test=('test', 'testing')
)
# Files of the folders that trainings and `DataFolder.write` leave, which hold no originals.
OWN = {'.training_lock', 'data_changes.json'}
WHOLE = math.inf  # how much of a path agrees that is there as it stands
# What Label Studio puts before the name of an uploaded file.
UPLOAD_PREFIX = re.compile(r'^[0-9a-f]{8}-(?=.)')


class Tree:
    """All files below a folder, also where links lead to folders.

    Hidden ones are left out, and folders that a training or `DataFolder.write` has left.
    """

    def __init__(self, root: Path):
        self.root = root
        self.files: list[str] = sorted(_walk(root))  # relative, with slashes
        self.present = set(self.files)
        self.images = [name for name in self.files if name.lower().endswith(IMAGE_SUFFIXES)]
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for name in self.images:
            path = PurePosixPath(name.lower())
            self._by_name.setdefault(path.name, []).append(name)
            self._by_stem.setdefault(path.stem, []).append(name)

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The files whose names end so, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def find(self, name: str, split: str | None = None, near: str = '') -> tuple[str, ...]:
        """The image that an annotation file means; several if that is not clear, or none.

        As it stands; without percent-encoding, URL, query, drive and leading dots; by as much of
        the end of its path as agrees with a file, in any case; with another suffix; without what
        Label Studio puts before names. Of several files, those of the split and those near the
        annotations come first; one that is in a folder of another split is not meant.

        Args:
            name: as the annotation file has it.
            split: 'train', 'val' or 'test', if known.
            near: folder of the annotations, relative to `root`.

        Returns:
            Paths relative to `root`, or an absolute one of a file elsewhere.
        """
        if Path(name).is_absolute() and Path(name).is_file():
            return (self.relative(Path(name)),)
        for readings in _readings(name):
            agreed, found = max(map(self._at_end, readings), key=itemgetter(0))
            if split is not None and agreed < WHOLE:
                found = [file for file in found if (split_of(file) or (split,))[0] == split]
            if found:
                return tuple(_preferred(found, split, near))
        return ()

    def relative(self, path: Path) -> str:
        """A path relative to `root`, or as it is if it is elsewhere."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return str(path)

    def _at_end(self, text: str) -> tuple[float, list[str]]:
        """The files that share most of the end of a path, and how much: in parts of the path."""
        parts = [part for part in text.split('/') if part not in ('', '.', '..')]
        if not parts:
            return 0, []
        if '/'.join(parts) in self.present:
            return WHOLE, ['/'.join(parts)]
        last = PurePosixPath(parts[-1].lower())
        found, worth = self._by_name.get(last.name), 1.0
        if found is None:
            stem = last.stem if last.suffix in IMAGE_SUFFIXES else last.name
            found, worth = self._by_stem.get(stem, []), 0.5
        wanted = [part.lower() for part in parts[:-1]]
        agreed = {name: _shared_end(wanted, name.lower().split('/')[:-1]) for name in found}
        most = max(agreed.values(), default=0)
        found = [name for name in found if agreed[name] == most]
        exact = [name for name in found if name.split('/')[-1] == parts[-1]]
        return (most + worth if found else 0), exact or found


def split_of(path: str) -> tuple[str, str] | None:
    """The split that a path's words name, and the word: 'train', 'val' or 'test'; None for none.

    Args:
        path: relative, with slashes. Its last part counts first, then its folder, and so on.
    """
    for part in reversed(path.split('/')):
        words = re.split('[^a-z]+', part.lower())
        for split, aliases in SPLIT_WORDS.items():
            for alias in aliases:
                if alias in words:
                    return split, alias
    return None


def _walk(root: Path) -> Iterator[str]:
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        # A link may lead to a folder above it.
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if folder != str(root) and OWN.intersection(files):
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith(('.', '__MACOSX')))
        below = os.path.relpath(folder, root).replace(os.sep, '/')
        for name in files:
            if not name.startswith('.'):
                yield name if below == '.' else f'{below}/{name}'


def _readings(name: str) -> Iterator[list[str]]:
    """What a name may mean; in the second list what is tried only where the first finds nothing."""
    texts = [name]
    if '?' in name:
        path, _, query = name.partition('?')
        # Label Studio's local storage: /data/local-files/?d=folder/name.jpg
        texts += [*parse_qs(query).get('d', []), path]
    texts += [urlsplit(text).path for text in texts if '://' in text]
    texts += [unquote(text) for text in texts]
    texts = [re.sub('^[A-Za-z]:', '', text.replace('\\', '/')) for text in dict.fromkeys(texts)]
    yield texts
    ends = [(text.rpartition('/')[0], text.rpartition('/')[2]) for text in texts]
    yield [f'{folder}/{UPLOAD_PREFIX.sub("", last)}' for folder, last in ends]


def _shared_end(wanted: list[str], folders: list[str]) -> int:
    count = 0
    for a, b in zip(reversed(wanted), reversed(folders)):
        if a != b:
            break
        count += 1
    return count


def _preferred(found: list[str], split: str | None, near: str) -> list[str]:
    for fits in (
        lambda name: split is not None and (split_of(name) or ('',))[0] == split,
        lambda name: near not in ('', '.') and name.startswith(f'{near}/'),
    ):
        if len(found) > 1:
            found = [name for name in found if fits(name)] or found
    return found
