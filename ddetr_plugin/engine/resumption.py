"""Which checkpoint a resumed training continues from."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log

from ddetr_plugin.engine.durable_files import what_is_broken

__all__ = ['newest_complete', 'resume_path']

NAMES = re.compile(r'(epoch|iter)_(\d+)\.pth')


def newest_complete(folders: Sequence[str | os.PathLike], named: str) -> str | None:
    """The path of the newest complete checkpoint that is not newer than `named`.

    Args:
        folders: where ``epoch_<n>.pth`` or ``iter_<n>.pth`` lie.
        named: path of the checkpoint that should be there; '' if that is not known.
    """
    wanted = NAMES.fullmatch(Path(named).name)
    found = []
    for path in (path for folder in folders for path in Path(folder).glob('*.pth')):
        match = NAMES.fullmatch(path.name)
        if match and (
            wanted is None or (match[1] == wanted[1] and int(match[2]) <= int(wanted[2]))
        ):
            found.append((int(match[2]), str(path)))
    return next((path for _, path in sorted(found, reverse=True) if not what_is_broken(path)), None)


def resume_path(work_dir: str | os.PathLike, out_dir: str | os.PathLike, given: str | None):
    """The checkpoint to resume from; all processes get the answer of the first.

    It is the one given, else the one that ``last_checkpoint`` in `work_dir` names. Where that
    file or the checkpoint is missing or broken, as a process that was killed while it wrote them
    in place may leave them, it is the newest complete checkpoint, and a warning says so.

    Args:
        work_dir: of the run.
        out_dir: the folder of its checkpoints.
        given: path or URL that the user asks for; None for the newest.

    Returns:
        A path, or None if there is nothing to resume from.

    Raises:
        ValueError: the checkpoint given is broken, or none of those that are there is complete.
    """
    answer = [None, None]
    if is_main_process():
        try:
            answer[0] = _resume_path(Path(work_dir), Path(out_dir), given)
        except ValueError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise ValueError(answer[1])
    return answer[0]


def _resume_path(work_dir: Path, out_dir: Path, given: str | None) -> str | None:
    note = work_dir / 'last_checkpoint'
    named = given
    if named is None:
        named = note.read_text(errors='replace').strip() if note.is_file() else ''
    if '://' in named or os.path.isdir(named):
        # Elsewhere, or in parts: not ours to judge.
        return named
    reason = what_is_broken(named) if named else f'{note} is missing or empty'
    if reason is None:
        return named
    folders = list(dict.fromkeys([out_dir, work_dir, *([Path(named).parent] if given else [])]))
    found = newest_complete(folders, named)
    if given is not None:
        remedy = f'; the newest complete one is {found}' if found else ''
        raise ValueError(f'cannot resume from {given}: {reason}{remedy}')
    if found is not None:
        print_log(
            f'Cannot resume from {named or "the last checkpoint"}: {reason}. Resuming from '
            f'{found}, the newest complete checkpoint.',
            logger='current',
            level=logging.WARNING,
        )
    elif named:
        raise ValueError(
            f'cannot resume from {named}: {reason}; no other checkpoint in {out_dir} is complete. '
            f'To start anew, leave out --resume or remove {note}'
        )
    return found
