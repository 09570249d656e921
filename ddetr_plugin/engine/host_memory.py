"""The memory of this process on a CPU."""

import ctypes
import os

__all__ = ['keep_freed_memory']


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for reuse instead of returning them to the kernel.

    On a CPU a training step allocates and frees hundreds of megabytes in large blocks, and glibc
    asks the kernel for each anew: clearing the pages takes a tenth to a seventh of the step.
    Before this process forks, as for data workers, the free blocks do go back: what the child
    inherits stays its own for as long as it lives, and the free blocks of a training can be several
    hundred megabytes. Does nothing where the C library is another one.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, 'mallopt') and hasattr(library, 'malloc_trim'):
        m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
        library.mallopt(m_mmap_threshold, 1 << 30)
        library.mallopt(m_trim_threshold, (1 << 31) - 1)
        os.register_at_fork(before=lambda: library.malloc_trim(0))
