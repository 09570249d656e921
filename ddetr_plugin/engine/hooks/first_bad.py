"""The first tensor of a training step that holds a NaN or an infinity, by name."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.model import BaseModel
from torch import Tensor, nn

from ddetr_plugin.engine.hooks.random_state import capture_random_state, restore_random_state

__all__ = ['first_bad_gradient', 'first_bad_input', 'first_bad_output', 'first_bad_weight']


class _Found(Exception):  # noqa: N818
    """Ends a forward pass at its first bad tensor, whose name it carries."""


def is_bad(tensor: Tensor) -> bool:
    """Whether a tensor holds a NaN or an infinity."""
    return tensor.is_floating_point() and not bool(tensor.isfinite().all())


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors inside sequences and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def first_bad_input(batch: dict) -> str | None:
    """Name of the first bad picture or ground truth.

    Args:
        batch: as the data preprocessor makes it: `inputs` (B, 3, H, W), and `data_samples`.
    """
    for i, picture in enumerate(batch['inputs']):
        if is_bad(picture):
            return f'input picture {i} of the batch'
    for i, sample in enumerate(batch.get('data_samples') or ()):
        if 'gt_instances' in sample and is_bad(get_box_tensor(sample.gt_instances.bboxes)):
            return f'ground-truth boxes of picture {i} of the batch'
    return None


def first_bad_weight(model: nn.Module) -> str | None:
    """Name of the first bad parameter or buffer, in the order of the state dict."""
    return next((f'weight {k}' for k, v in model.state_dict().items() if is_bad(v)), None)


def first_bad_output(model: BaseModel, batch: dict, random_state: dict) -> str | None:
    """Name of the first module whose output is bad, as the step computed it, without its losses.

    No process waits for another, so that one can look for itself alone.

    Args:
        model: in training mode.
        batch: as for `first_bad_input`.
        random_state: see `capture_random_state`; that of the step, which draws its dropout.
    """
    names = {module: name for name, module in model.named_modules()}

    def check(module, arguments, output):
        if any(is_bad(tensor) for tensor in tensors(output)):
            raise _Found(f'output of {names[module] or "the model"}')

    hooks = [module.register_forward_hook(check) for module in names]
    now = capture_random_state()
    restore_random_state(random_state)
    try:
        with torch.no_grad():
            model(**batch, mode='tensor')
    except _Found as found:
        return str(found)
    finally:
        restore_random_state(now)
        for hook in hooks:
            hook.remove()
    return None


def first_bad_gradient(model: BaseModel, batch: dict, random_state: dict) -> str | None:
    """Name of the weight with a bad gradient that is nearest to the losses.

    Other processes must do the same at the same time. Gradients of the model are lost.

    Args:
        model, batch, random_state: as for `first_bad_output`.
    """
    model.zero_grad()
    restore_random_state(random_state)
    with nullcontext() if torch.is_grad_enabled() else torch.enable_grad():
        losses = model(**batch, mode='loss')
        model.parse_losses(losses)[0].backward()
    bad = [k for k, v in model.named_parameters() if v.grad is not None and is_bad(v.grad)]
    model.zero_grad()
    return f'gradient of {bad[-1]}' if bad else None
