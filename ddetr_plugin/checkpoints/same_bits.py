"""Whether tensors hold the same, and dicts of tensors in which a name occurs twice."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ['by_new_name', 'checksum', 'same_bits']


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, numbers that are none included."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if any(t.layout != torch.strided or t.is_meta or t.is_quantized for t in (one, other)):
        return False
    return torch.equal(
        one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8)
    )


def checksum(state: Mapping[str, Tensor]) -> str:
    """sha256, 16 hexadecimal digits, over names, dtypes, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f'{name}|{tensor.dtype}|{tuple(tensor.shape)}|'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def by_new_name(tensors: Iterable[tuple[str, str, Tensor]]) -> dict[str, Tensor]:
    """A state dict of renamed tensors.

    Args:
        tensors: new name, old name and tensor.

    Raises:
        ValueError: two get one name, but differ.
    """
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for new, old, tensor in tensors:
        if new in state and not same_bits(state[new], tensor):
            raise ValueError(
                f'{origin[new]} and {old} are two names of {new}, but hold different numbers; the '
                'file was edited or joined from two, take the wrong one out'
            )
        state.setdefault(new, tensor)
        origin.setdefault(new, old)
    return state
