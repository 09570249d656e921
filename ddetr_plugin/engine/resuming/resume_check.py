"""Whether a training can continue from a checkpoint: whether both are the same training's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from ddetr_plugin.checkpoints.files.safe_loading import load_file
from ddetr_plugin.engine.resuming.optimizer import base_settings, drop_untrained
from ddetr_plugin.engine.resuming.resumption import ResumeError

__all__ = ['check_resumable']

# Settings that only some optimisers have, and none acquires with a new version of torch.
KINDS = ('betas', 'momentum')
SHOWN = 3


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
    reason: list[str | None] = [None]
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
    model = model.get_submodule('module') if is_model_wrapper(model) else model
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
    state = dict(state, param_groups=[*state['param_groups']])
    drop_untrained(state, optimizer)
    one, other = state['param_groups'], optimizer.param_groups
    if any((kind in base_settings(one[0])) != (kind in base_settings(other[0])) for kind in KINDS):
        return f'it is of an optimiser of another kind than {type(optimizer).__name__}'
    sizes, own = ([len(group['params']) for group in groups] for groups in (one, other))
    if len(sizes) != len(own):
        return f'its optimiser has {len(sizes)} groups of parameters, here there are {len(own)}'
    if sizes != own:
        return f'its optimiser has groups of {sizes} parameters, here they have {own}'
    return None
