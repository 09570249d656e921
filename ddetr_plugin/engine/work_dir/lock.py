"""One training per work folder."""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

__all__ = ['LOCK', 'WorkDirInUseError', 'lock_work_dir', 'lock_work_dir_together']

LOCK = '.training_lock'


class WorkDirInUseError(ValueError):
    """Another training is running in the work folder."""


def lock_work_dir(work_dir: str | os.PathLike) -> int | None:
    """Keep other processes from training in a work folder while this one lives.

    The lock is the process's own: it ends with it, however it ends, and forked data workers, which
    may outlive a killed training for seconds, have no part in it. The same process may lock a
    folder again, which it does not notice. On a file system without locks there is a warning only.

    Args:
        work_dir: is made.

    Returns:
        A file descriptor, whose closing ends the lock; None without one.

    Raises:
        WorkDirInUseError: another process has the lock.
    """
    path = Path(work_dir, LOCK)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 1000, 0).decode(errors='replace').strip()
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise WorkDirInUseError(
                f'{work_dir} is in use: {holder or "another process"} is training there, and two '
                'would spoil the checkpoints of each other. Wait, stop that one, or name another '
                'folder with --work-dir'
            ) from None
        print_log(
            f'{path} cannot be locked ({error}); nothing keeps a second training out of '
            f'{work_dir}.',
            logger='current',
            level=logging.WARNING,
        )
        return None
    # For the message of others; a full disk does not keep anybody out or in.
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f'process {os.getpid()} on {socket.gethostname()}\n'.encode(), 0)
    except OSError:
        pass
    return descriptor


def lock_work_dir_together(work_dir: str | os.PathLike) -> int | None:
    """The same in a run of several processes: the first one locks for all, and all of them stop.

    Raises:
        WorkDirInUseError: another run has the lock.
    """
    descriptor = None
    message: list[str | None] = [None]
    if is_main_process():
        try:
            descriptor = lock_work_dir(work_dir)
        except WorkDirInUseError as error:
            message[0] = str(error)
    broadcast_object_list(message)
    if message[0] is not None:
        raise WorkDirInUseError(message[0])
    return descriptor
