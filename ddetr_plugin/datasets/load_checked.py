"""Broken pictures: found while loading, skipped up to a budget in training, never in a test."""

import json
import logging
import os
import tempfile
import weakref
from pathlib import Path

from mmcv.transforms import BaseTransform
from mmengine.logging import print_log

from ddetr_plugin.datasets.image_files import missing_end
from ddetr_plugin.registry import TRANSFORMS

__all__ = ['BrokenPictureError', 'Ledger', 'LoadImageChecked']


class BrokenPictureError(ValueError):
    """Pictures cannot be read; the message lists them all with the reasons."""


class Ledger:
    """The broken pictures that a process and its data workers have met.

    They are lines of a temporary file, which workers find by its name, however they are started
    and as long as they live. A line is appended by one write, which is never torn.
    """

    def __init__(self):
        descriptor, self.path = tempfile.mkstemp(prefix='broken_pictures_', suffix='.jsonl')
        os.close(descriptor)
        owner = os.getpid()
        weakref.finalize(self, _remove, self.path, owner)

    def read(self) -> dict[str, str]:
        """The reason of each picture, by its path."""
        return dict(json.loads(line) for line in Path(self.path).read_text().splitlines())

    def add(self, picture: str, reason: str) -> None:
        with open(self.path, 'ab', buffering=0) as file:
            file.write(json.dumps([picture, reason]).encode() + b'\n')


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:
        Path(path).unlink(missing_ok=True)


def list_pictures(broken: dict[str, str]) -> str:
    """One line for each, with the reason."""
    return ''.join(f'\n  {picture}: {reason}' for picture, reason in broken.items())


@TRANSFORMS.register_module()
class LoadImageChecked(BaseTransform):
    """Loads a picture, and takes another one in its place if it is broken.

    A picture is broken if it is missing, if loading it raises an error, or if it is a JPEG or PNG
    without its end, which decoders would fill with grey. In training, each broken picture is
    reported once and the dataset draws another sample instead, from the same random stream
    whether the run was resumed or not. Once more than `max_broken` different ones are found, by
    all data workers of the process together, the training stops with the list. `BrokenPictureHook`
    adds up processes, and carries the list into resumed runs. With ``max_broken=0``, as in
    validation and tests, where leaving one out would change the result, the first one stops.

    Required keys: `img_path`. Adds what `load` adds.

    Args:
        load: the transform that reads the picture, such as LoadImageFromFile, or its config.
        max_broken: how many different pictures may be broken.

    Raises:
        BrokenPictureError: on use: there are more.
    """

    def __init__(self, load: dict | BaseTransform, max_broken: int = 0):
        if max_broken < 0:
            raise ValueError(f'max_broken must be 0 or more, got {max_broken}')
        self.load = TRANSFORMS.build(load) if isinstance(load, dict) else load
        self.max_broken = max_broken
        self.ledger = Ledger() if max_broken else None

    def transform(self, results: dict) -> dict | None:
        """The results with the picture; None for a broken one, which the dataset replaces."""
        path = results['img_path']
        try:
            # What comes from elsewhere comes whole or not at all.
            reason = missing_end(path) if self._is_local(path) else None
            if reason is None:
                loaded = self.load(results)
                if loaded is not None:
                    return loaded
                reason = 'it cannot be decoded'
        except MemoryError:
            raise
        except Exception as error:
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        self._count(path, reason)
        return None

    def _is_local(self, path: str) -> bool:
        # Backends such as petrel map paths that look local to places elsewhere.
        settings = getattr(self.load, 'backend_args', None) or {}
        return '://' not in path and settings.get('backend', 'local') in ('local', 'disk')

    def _count(self, path: str, reason: str) -> None:
        broken = {} if self.ledger is None else self.ledger.read()
        if path in broken:
            return
        broken[path] = reason
        if self.ledger is not None:
            self.ledger.add(path, reason)
            # Another worker may have found one at the same time.
            broken |= self.ledger.read()
        if len(broken) > self.max_broken:
            raise BrokenPictureError(
                f'{len(broken)} broken pictures, of which max_broken={self.max_broken} are '
                f'skipped:{list_pictures(broken)}\nReplace them or take them out of the '
                'annotations; tools/check_dataset.py finds them all. max_broken of '
                'LoadImageChecked in a training pipeline lets more be skipped.'
            )
        print_log(
            f'Skipped broken picture {len(broken)} of at most {self.max_broken}: {path}: {reason}',
            logger='current',
            level=logging.ERROR,
        )
