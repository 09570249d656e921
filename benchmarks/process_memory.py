"""How much memory this process has and had, as Linux counts it."""

import re
from pathlib import Path

_PROCESS = Path('/proc/self')


def status_kib(name):
    """One number of this process's account: 'VmRSS' is KiB in memory now, 'VmHWM' the peak so far.

    Returns:
        KiB; None where the system does not tell.
    """
    path = _PROCESS / 'status'
    text = path.read_text() if path.exists() else ''
    found = re.search(rf'^{name}:\s+(\d+)', text, re.MULTILINE)
    return int(found[1]) if found else None


def forget_peak():
    """Starts a new 'VmHWM', see proc(5); only where `status_kib` tells one."""
    (_PROCESS / 'clear_refs').write_text('5')
