"""Box arithmetic shared by the decoder, the heads and the criterion.

Boxes are (cx, cy, w, h) or (x1, y1, x2, y2), normalised by the width and height of the unpadded
picture (0..1) unless a docstring says pixels.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    'at_least_float32',
    'box_logits',
    'inverse_sigmoid',
    'pairwise_giou',
    'regress_boxes',
    'sine_embedding',
]


def at_least_float32(x: Tensor) -> Tensor:
    """Returns `x` as float32, or unchanged if it is float32 or float64."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of `x`, with `x` and `1 - x` clamped below at `eps`.

    Args:
        x: any shape, values in 0..1 (clamped into it).
        eps: 1e-5 as in the official release; the result lies in +-11.5.

    Returns:
        Tensor of the shape and dtype of `x`.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def sine_embedding(positions: Tensor, num_feats: int, temperature: float = 10000.0) -> Tensor:
    """Sine embedding of normalised coordinates (paper A.4, queries from region proposals).

    Args:
        positions: (..., N) float, values in 0..1.
        num_feats: features per coordinate; even.
        temperature: of the geometric progression of wavelengths.

    Returns:
        (..., N * num_feats), float32 or better: for each coordinate in turn, sine and cosine
        interleaved.

    Raises:
        ValueError: `num_feats` is odd.
    """
    if num_feats % 2:
        raise ValueError(f'num_feats must be even, got {num_feats}')
    positions = at_least_float32(positions)
    exponent = torch.arange(num_feats, dtype=positions.dtype, device=positions.device)
    wavelength = temperature ** (2 * (exponent // 2) / num_feats)
    angle = positions[..., None] * (2 * math.pi) / wavelength  # (..., N, num_feats)
    embedding = torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1)
    return embedding.flatten(-3)


def box_logits(branch: nn.Sequential, hidden: Tensor) -> Tensor:
    """What a box branch makes of hidden states, for a sigmoid.

    The last layer runs outside autocast: an offset in bfloat16 would move a box by whole pixels.

    Args:
        branch: layers that end in a linear one with 4 outputs.
        hidden: (..., C).

    Returns:
        (..., 4), float32 or better.
    """
    hidden = branch[:-1](hidden)
    last: Any = branch[-1]  # with a weight, as a linear layer has it
    with torch.autocast(hidden.device.type, enabled=False):
        return at_least_float32(last(hidden.to(last.weight.dtype)))


def regress_boxes(branch: nn.Sequential, hidden: Tensor, reference_logits: Tensor) -> Tensor:
    """Boxes as offsets to reference points, added in logit space (paper A.3).

    Args:
        branch: see `box_logits`.
        hidden: (..., C).
        reference_logits: (..., 2) for (cx, cy), or (..., 4) for (cx, cy, w, h); logits of
            normalised coordinates, float32 or better. +inf gives a coordinate of 1.

    Returns:
        (..., 4), (cx, cy, w, h) normalised, dtype of `reference_logits`.
    """
    offset = box_logits(branch, hidden).to(reference_logits.dtype)
    if reference_logits.shape[-1] == 4:
        return (offset + reference_logits).sigmoid()
    # A 2-d reference says where, not how large: width and height are the branch's alone.
    centre = offset[..., :2] + reference_logits
    return torch.cat((centre, offset[..., 2:]), dim=-1).sigmoid()


def pairwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU (arXiv:1902.09630) of every pair, batched.

    Args:
        boxes: (..., Q, 4), (x1, y1, x2, y2), any one unit.
        others: (..., G, 4), same unit; leading dimensions broadcast.

    Returns:
        (..., Q, G) in -1..1. Boxes without area give finite values.
    """
    boxes, others = boxes[..., :, None, :], others[..., None, :, :]
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    area_others = (others[..., 2:] - others[..., :2]).clamp(min=0).prod(-1)
    top_left = torch.maximum(boxes[..., :2], others[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], others[..., 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(-1)
    union = area + area_others - inter
    hull_top_left = torch.minimum(boxes[..., :2], others[..., :2])
    hull_bottom_right = torch.maximum(boxes[..., 2:], others[..., 2:])
    hull = (hull_bottom_right - hull_top_left).clamp(min=0).prod(-1)
    # The smallest positive number only guards 0 / 0; an eps like 1e-6 would swallow small
    # normalised boxes (one pixel of 800 x 1333 has area 9e-7).
    tiny = torch.finfo(union.dtype).tiny
    return inter / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
