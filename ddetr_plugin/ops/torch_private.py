"""The only place that uses names of torch which torch may change without notice.

All were read in torch 2.13.0 and 2.14.1. Where a later torch lacks one, what the package needs
becomes slower or checks less, but never wrong; what only tools need says what is missing.
"""

import pkgutil

import torch


def transforms_active() -> bool:
    """Whether a transform of torch.func is under way; True where torch does not tell."""
    try:
        return torch._C._are_functorch_transforms_active()
    except AttributeError:
        return True


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for others in torch.func; True where torch does not tell."""
    try:
        return torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    except AttributeError:
        return True


def dispatch_mode_active() -> bool:
    """Whether a mode such as fake tensors sees every operator; True where torch does not tell."""
    try:
        return torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    except AttributeError:
        return True


def check(condition, message) -> None:
    """Raises RuntimeError unless `condition`, which may be of symbols that are not known yet.

    Args:
        condition: a bool, or torch.SymBool.
        message: function without arguments that makes the text.
    """
    if hasattr(torch, '_check'):
        torch._check(condition, message)
    elif not condition:
        raise RuntimeError(message())


def copy_all(targets: list, sources: list) -> None:
    """Copies tensors into others in place; on a GPU by one kernel instead of one for each."""
    if hasattr(torch, '_foreach_copy_'):
        torch._foreach_copy_(targets, sources)
    else:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


def lookup(name: str):
    """What a private name stands for, for tools: there is no way around it.

    Args:
        name: such as 'torch._subclasses.fake_tensor.FakeTensorMode'.

    Raises:
        ImportError: this torch has no such name.
    """
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f'torch {torch.__version__} has no {name}, which torch 2.13.0 and 2.14.1 have; run '
            'this tool with one of them: pip install torch==2.14.1'
        ) from error
