"""What several processes of one test run need, made by the first that asks for it."""

import fcntl
import os


def made_once(tmp_path_factory, name, make):
    """A folder that `make(folder)` has filled; the processes of pytest-xdist share it.

    Args:
        tmp_path_factory: pytest's.
        name: of the folder.
        make: what it raises reaches whoever asked; the next one tries again.
    """
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        # That of this process lies in one of the whole run.
        base = base.parent
    made = base / name
    with open(base / f'{name}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder = tmp_path_factory.mktemp(name)
            make(folder)
            folder.rename(made)
    return made
