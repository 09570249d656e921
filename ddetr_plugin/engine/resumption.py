"""Which checkpoint a resumed training continues from."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from ddetr_plugin.checkpoints.loading import load_file
from ddetr_plugin.engine.durable_files import what_is_broken

__all__ = ['ResumeError', 'check_resumable', 'newest_complete', 'resume_path']

NAMES = re.compile(r'(epoch|iter)_(\d+)\.pth')
# Settings that only some optimisers have, and none acquires with a new version of torch.
KINDS = ('betas', 'momentum')
SHOWN = 3


class ResumeError(ValueError):
    """A training cannot continue from the checkpoint that it is given or has found."""


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
        ResumeError: the checkpoint given is broken, or none of those that are there is complete.
    """
    answer = [None, None]
    if is_main_process():
        try:
            answer[0] = _resume_path(Path(work_dir), Path(out_dir), given)
        except ResumeError as error:
            answer[1] = str(error)
    broadcast_object_list(answer)
    if answer[1] is not None:
        raise ResumeError(answer[1])
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
        raise ResumeError(f'cannot resume from {given}: {reason}{remedy}')
    if found is not None:
        print_log(
            f'Cannot resume from {named or "the last checkpoint"}: {reason}. Resuming from '
            f'{found}, the newest complete checkpoint.',
            logger='current',
            level=logging.WARNING,
        )
    elif named:
        raise ResumeError(
            f'cannot resume from {named}: {reason}; no other checkpoint in {out_dir} is complete. '
            f'To start anew, leave out --resume or remove {note}'
        )
    return found


def check_resumable(path: str, runner, with_optimizer: bool) -> None:
    """Stop before a training continues from the checkpoint of another one.

    mmengine would load what fits of the weights and go on, or stumble over the rest. All processes
    get the verdict of the first. Folders, and what lies elsewhere, are not judged.

    Args:
        path: the checkpoint.
        runner: with its model and its optimiser built.
        with_optimizer: whether checkpoints of this training hold the state of the optimiser.

    Raises:
        ResumeError: the file is no checkpoint, asks to run something, or has no state of a
            training, or one of another model or optimiser.
    """
    reason = [None]
    if is_main_process() and '://' not in path and not os.path.isdir(path):
        reason[0] = _why_not(path, runner, with_optimizer)
    broadcast_object_list(reason)
    if reason[0] is not None:
        raise ResumeError(f'cannot resume from {path}: {reason[0]}')


def _why_not(path: str, runner, with_optimizer: bool) -> str | None:
    try:
        content = load_file(Path(path))
    except ValueError as error:
        return str(error)
    model, wrapper = runner.model, runner.optim_wrapper
    # Of sharded ones each process has a part, under other names.
    sharded = isinstance(model, FullyShardedDataParallel)
    reason = what_is_no_training(content)
    if reason is None and not sharded:
        reason = what_model_differs(content['state_dict'], model)
    if reason is None and with_optimizer and isinstance(wrapper, OptimWrapper):
        optimizer = None if sharded else wrapper.optimizer
        reason = what_optimizer_differs(content.get('optimizer'), optimizer)
    return reason and (
        f'{reason}. Resume with the config of the training that wrote it; or start a new training '
        f'from its weights with --cfg-options load_from={path}, without --resume'
    )


def what_is_no_training(content: Any) -> str | None:
    """What a file lacks of a checkpoint that a training wrote; None if nothing."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    lacks = [name for name in ('epoch', 'iter') if name not in meta]
    if isinstance(content, Mapping):
        lacks += [name for name in ('state_dict', 'message_hub') if name not in content]
    if not isinstance(content, Mapping) or lacks:
        return f'it is not a checkpoint of a training with mmengine (it has no {", ".join(lacks)})'
    return None


def what_model_differs(state: Mapping, model: nn.Module) -> str | None:
    """Which parameters of a model a state dict does not have; None if it has all."""
    model = model.module if is_model_wrapper(model) else model
    state = {name.removeprefix('module.'): value for name, value in state.items()}
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    missing = [name for name in own if name not in state]
    other = [
        f'{name} of shape {tuple(state[name].shape)} instead of {shape}'
        for name, shape in own.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    found = []
    for what, names in (('are not in it', missing), ('are other ones', other)):
        if names:
            more = ', ...' if len(names) > SHOWN else ''
            shown = f'{", ".join(names[:SHOWN])}{more}'
            found.append(f'{len(names)} of {len(own)} parameters {what} ({shown})')
    return f'it is of another model: {"; ".join(found)}' if found else None


def what_optimizer_differs(state: Mapping | None, optimizer: Optimizer | None) -> str | None:
    """Why an optimiser cannot continue from a state; None if it can, or is not known."""
    if state is None:
        return "it was saved without the optimiser's state, as the best ones are"
    if optimizer is None or 'param_groups' not in state:
        return None
    one, other = state['param_groups'], optimizer.param_groups
    if any((kind in one[0]) != (kind in other[0]) for kind in KINDS):
        return f'it is of an optimiser of another kind than {type(optimizer).__name__}'
    sizes, own = ([len(group['params']) for group in groups] for groups in (one, other))
    if len(sizes) != len(own):
        return f'its optimiser has {len(sizes)} groups of parameters, here there are {len(own)}'
    if sizes != own:
        return f'its optimiser has groups of {sizes} parameters, here they have {own}'
    return None
