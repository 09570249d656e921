"""What programs around a model put before its names: DDP, torch.compile, FSDP, Lightning, ..."""

import re
from collections import Counter
from collections.abc import Iterable

from ddetr_plugin.checkpoints.files.safe_loading import CheckpointFileError
from ddetr_plugin.checkpoints.names.detect import find_models

__all__ = ['bare_names', 'pick_model']

_INSIDE = '_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module'
_WRAPPER = re.compile(rf'^(?:(?:module|{_INSIDE})\.)+|(?<=\.)(?:(?:{_INSIDE})\.)+')
_AVERAGE = re.compile(r'(^|[._])(ema|swa|teacher|average)', re.IGNORECASE)


def bare_names(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Each name without what DDP, torch.compile, FSDP or activation checkpointing put into it.

    Returns:
        Old names to new ones; and a note for each part that was stripped.
    """
    stripped: Counter[str] = Counter()
    new = {}
    for name in names:
        stripped.update(_WRAPPER.findall(name))
        new[name] = _WRAPPER.sub('', name)
    return new, [_note(part, count) for part, count in stripped.items()]


def pick_model(
    names: Iterable[str], ema: bool = False
) -> tuple[dict[str, str], list[str], list[str]]:
    """The names of the one Deformable DETR that is meant, without the prefix that they share.

    A LightningModule that holds the detector as `model` or `detector` puts that before each name,
    and may hold a second one, such as an average or a teacher. Where there is no Deformable DETR,
    all names stay.

    Args:
        names: of one state dict, without what `bare_names` strips.
        ema: take the average of the weights.

    Returns:
        Old names to new ones; notes of what was stripped; and what is left out, in words.

    Raises:
        CheckpointFileError: there are several models, and nothing says which is meant; or there is
            no average.
    """
    names = list(dict.fromkeys(names))
    prefixes = [prefix for _, prefix in find_models(names)]
    averages = [prefix for prefix in prefixes if _AVERAGE.search(prefix)]
    if ema and not averages:
        raise CheckpointFileError(
            'there is no average of the weights (EMA) in the file, expected it beside them, such '
            'as ema_state_dict or model_ema, or as a second model of that name; leave --ema out'
        )
    if prefixes in ([], ['']):
        return {name: name for name in names}, [], []
    meant = prefixes
    if len(prefixes) > 1:
        meant = averages if ema else [prefix for prefix in prefixes if prefix not in averages]
    if len(meant) != 1:
        raise CheckpointFileError(
            f'the weights are those of {len(prefixes)} models, whose names begin with '
            f'{" and ".join(repr(prefix) for prefix in prefixes)}; expected one, or one and its '
            'average; save the state_dict() of one of them'
        )
    (prefix,) = meant
    inner = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
    new = {
        name: name.removeprefix(prefix)
        for name in names
        if name.startswith(prefix) and not (inner and name.startswith(inner))
    }
    left = [
        f'{other}* (another model{"; --ema takes it instead" if other in averages else ""})'
        for other in prefixes
        if other != prefix
    ]
    outside = [n for n in names if n not in new and not n.startswith(tuple(prefixes))]
    if outside:
        more = f' and {len(outside) - 4} more' if len(outside) > 4 else ''
        left.append(f'{", ".join(outside[:4])}{more} (not below {prefix})')
    return new, [_note(prefix, len(new))] if prefix else [], left


def _note(prefix: str, count: int) -> str:
    return f'{prefix} was stripped from {count} names'
