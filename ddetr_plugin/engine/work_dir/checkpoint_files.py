"""Files of checkpoints that are complete, whoever saves them."""

import hashlib
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend

from ddetr_plugin.engine.work_dir.durable_files import PARTIAL, commit, write_bytes

__all__ = ['CheckpointError', 'PostponingBackend', 'publish', 'save_complete']


class CheckpointError(OSError):
    """Checkpoints cannot be written, and the training stops rather than lose more work."""


class PostponingBackend(LocalBackend):
    """A file backend for CheckpointHook, which removes old files before it writes new ones.

    Args:
        postpone: is called with the path instead of removing it; `delete` removes it.
    """

    def __init__(self, postpone: Callable[[str], None]):
        super().__init__()
        self.remove = postpone
        self.delete = super().remove


def publish(checkpoint: Path, keys: Sequence[str]) -> Path:
    """Write some keys of a checkpoint as ``<name>-<start of its SHA-256>.pth``; the new path."""
    content = torch.load(checkpoint, map_location='cpu', weights_only=True)
    file = BytesIO()
    torch.save({key: content[key] for key in keys if key in content}, file)
    digest = hashlib.sha256(file.getbuffer()).hexdigest()
    path = checkpoint.with_name(f'{checkpoint.stem}-{digest[:8]}.pth')
    write_bytes(path, file.getbuffer())
    return path


def save_complete(
    save: Callable[..., None], out_dir: str, filename: str, together: bool, *args, **settings
) -> None:
    """Save under a name that is not yet the file's own, and give it that when it is complete.

    Args:
        save: the runner's `save_checkpoint`, of which the first process alone writes.
        out_dir: folder.
        filename: name in it.
        together: whether all processes are here, and are to learn what the first one met. Else the
            others would go on to the next file, and wait for the first one there.
        *args, **settings: for `save`.

    Raises:
        OSError: it could not be written; nothing of it is left.
    """
    failure = None
    try:
        save(out_dir, filename + PARTIAL, *args, **settings)
        if is_main_process():
            commit(Path(out_dir, filename))
    except OSError as error:
        Path(out_dir, filename + PARTIAL).unlink(missing_ok=True)
        failure = error
    if together:
        message = [failure and str(failure)]
        broadcast_object_list(message)
        if message[0] is not None and failure is None:
            failure = OSError(message[0])
    if failure is not None:
        raise failure
