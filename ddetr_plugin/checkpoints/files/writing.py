"""Checkpoint files as the programs of each dialect expect them."""

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ['TARGETS', 'check_destination', 'write_checkpoint']

# What files are written for.
TARGETS = ('ddetr_plugin', 'official', 'mmdet', 'transformers')


def check_destination(
    path: str | os.PathLike, dialect: str, source: str | os.PathLike | None = None
) -> None:
    """Refuse a file that cannot be written, or must not, before anything is converted.

    Args:
        path: the file to write.
        dialect: what is to read it, one of `TARGETS`.
        source: the file or folder that the weights come from, if any.

    Raises:
        OSError: nothing can be written there.
        ValueError: it is a folder or a device, or the source itself, or its suffix does not fit
            the dialect; or nothing is written for that.
    """
    if dialect not in TARGETS:
        raise ValueError(f'weights are written for {", ".join(TARGETS)}, not for {dialect!r}')
    path = Path(path)
    if path.is_dir():
        example = 'model.safetensors' if dialect == 'transformers' else f'{dialect}.pth'
        raise ValueError(f'{path} is a folder; name the file to write, such as {path / example}')
    if path.exists() and not path.is_file():
        raise ValueError(f'{path} is no regular file; name a file to write')
    if path.suffix == '.safetensors' and dialect != 'transformers':
        raise ValueError(
            f'.safetensors files are for --to transformers only, got {path}; write a .pth file'
        )
    both = source is not None and path.exists() and Path(source).exists()
    if both and (path.samefile(str(source)) or path.parent.samefile(str(source))):
        raise ValueError(f'{path} belongs to the weights to convert; write to another file')
    _require_writable(path)


def _require_writable(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError('the file that is there is read-only')
        # Permissions alone do not tell, for instance of a file system that is read-only.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f'{path} cannot be written: {error}; name another file') from error


def write_checkpoint(
    path: str | os.PathLike, state: Mapping[str, Tensor], dialect: str, meta: dict
) -> None:
    """Write weights as the programs of a dialect expect them.

    Args:
        path: .safetensors for 'transformers' only; else any name.
        state: the weights, in that dialect's names.
        dialect: one of `TARGETS`.
        meta: goes into files of 'ddetr_plugin' and 'mmdet'; its `dilation` also into 'official'.

    Raises:
        OSError: it cannot be written, for instance because the disk is full; a file that was there
            before is as it was.
        ValueError: the library safetensors is missing, or as for `check_destination`.
    """
    check_destination(path, dialect)
    # Through a link, not over it.
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.ddetr-{os.getpid()}{path.suffix}')
    try:
        _save(part, state, dialect, meta)
        part.replace(path)
    # torch reports a full disk so.
    except (OSError, RuntimeError) as error:
        raise OSError(f'{path} cannot be written: {error}') from error
    finally:
        part.unlink(missing_ok=True)


def _save(path: Path, state: Mapping[str, Tensor], dialect: str, meta: dict) -> None:
    if path.suffix == '.safetensors':
        try:
            from safetensors import SafetensorError
            from safetensors.torch import save_file
        except ImportError as error:
            raise ValueError(
                f'{path} needs the library safetensors: pip install safetensors; or write a .bin'
            ) from error
        # One name, one tensor: the format knows no aliases.
        tensors = {k: v.clone().contiguous() for k, v in state.items()}
        try:
            save_file(tensors, path, {'format': 'pt'})
        except SafetensorError as error:
            raise OSError(str(error)) from error
    elif dialect == 'transformers':
        torch.save(dict(state), path)
    elif dialect == 'official':
        said = {k: meta[k] for k in ('dilation',) if k in meta}
        args = {'args': argparse.Namespace(**said)} if said else {}
        torch.save({'model': dict(state), **args}, path)
    else:
        torch.save({'state_dict': dict(state), 'meta': meta}, path)
