"""Files that are either complete or not there, whenever the process or the machine stops."""

import errno
import os
import zipfile
from pathlib import Path

import torch

__all__ = [
    'PARTIAL',
    'commit',
    'remove_partial_files',
    'what_is_broken',
    'write_bytes',
    'write_text',
]

# What a file that is being written is called, in the folder where it will lie: renaming works
# within a file system only.
PARTIAL = '.partial'
# What network file systems and FUSE answer to a folder's fsync, and a folder that is not readable.
NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM)


def commit(path: str | os.PathLike) -> None:
    """Give ``<path>.partial`` its name, once its content is on the disk.

    Before, the old file is under that name; afterwards the new one; never anything else.

    Raises:
        OSError: the content cannot be written, for instance on a full disk. The partial file is
            removed, and what was under the name is still there.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        _sync(partial)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    # The name is data of the folder, which not every file system can bring to the disk by itself.
    try:
        _sync(path.parent)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def write_bytes(path: str | os.PathLike, content: bytes | memoryview) -> None:
    """Write or replace a file, see `commit`.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.write_bytes(content)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    commit(path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """The same for text, in UTF-8."""
    write_bytes(path, text.encode())


def remove_partial_files(folder: str | os.PathLike) -> list[Path]:
    """Remove the checkpoints that a killed run had not finished writing, and return their paths."""
    found = [*Path(folder).glob(f'*.pth{PARTIAL}'), *Path(folder).glob(f'last_*{PARTIAL}')]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def what_is_broken(path: str | os.PathLike) -> str | None:
    """Why a checkpoint cannot be loaded: it is missing, cut off, or its bytes have changed.

    Reads the whole file and compares its checksums, which torch.load does not.

    Returns:
        The reason, or None for a complete checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        return 'there is no such file'
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                changed = archive.testzip()
            return None if changed is None else f'the checksum of {changed} in it does not fit'
        # A file of torch before 1.6, or one without its end.
        torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        return f'{type(error).__name__}: {error}'.splitlines()[0]
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
