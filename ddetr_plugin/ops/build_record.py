"""What setup.py wrote down when it built a library: compilers, flags, torch and its ABI."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

__all__ = ['BuildRecord', 'read_build_record']


class BuildRecord(NamedTuple):
    """How one library was built. Without `facts`, `missing` says why they are not known.

    `facts` holds compiler, cxx_flags, torch, torch_cuda, cxx11_abi, stable_abi, python and
    platform; of the CUDA library also nvcc, nvcc_flags and architectures. All are strings or None.
    """

    facts: dict | None
    missing: str | None = None


def read_build_record(library: Path) -> BuildRecord:
    """Reads the record beside a library; refuses one that was written for another file.

    Args:
        library: path of the compiled library, such as .../_C.abi3.so.
    """
    path = library.with_name(f'{library.name.partition(".")[0]}.build.json')
    try:
        facts = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return BuildRecord(None, f'no {path.name} beside it')
    except (OSError, ValueError) as error:
        return BuildRecord(None, f'{path.name} cannot be read: {error}')
    if facts.pop('sha256', None) != hashlib.sha256(library.read_bytes()).hexdigest():
        return BuildRecord(None, f'{path.name} was written for another library')
    return BuildRecord(facts)
