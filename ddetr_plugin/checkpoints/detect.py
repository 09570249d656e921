"""Which implementation wrote a state dict, and of which architecture."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ddetr_plugin.checkpoints.bits import same_bits
from ddetr_plugin.checkpoints.names import DIALECTS, LEVEL_EMBED, Layout

__all__ = ['OURS', 'detect_dialect', 'detect_layout']

OURS = 'ddetr_plugin'
# mmdet 2.x, which needs mmdet's own conversion first.
_MMDET_2 = 'bbox_head.transformer.level_embeds'


def detect_dialect(names: Iterable[str]) -> str | None:
    """'ddetr_plugin' or one of `DIALECTS`; None if the names are of no Deformable DETR.

    Raises:
        ValueError: the names are those of mmdet 2.x.
    """
    names = set(names)
    if _MMDET_2 in names:
        raise ValueError(
            "the checkpoint is of mmdet 2.x, expected 3.x; convert it first with mmdet 3's "
            'tools/model_converters/upgrade_model_version.py'
        )
    for dialect, name in zip((OURS, *DIALECTS), LEVEL_EMBED):
        if name in names:
            return dialect
    return None


def _count(names: Iterable[str], pattern: str) -> int:
    """1 + the largest number that the pattern's group matches; 0 if nothing matches."""
    found = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def detect_layout(state: Mapping[str, Tensor], dialect: str) -> Layout:
    """The architecture of `state`, whose names are the common ones of `dialect`.

    Heads that are all the same count as shared, unless the file stores them as those of a model
    with refinement does. Whether the backbone is dilated (DC5) does not show in weights.

    Raises:
        ValueError: a part without which nothing can be said is missing.
    """
    prefix = {'official': 'transformer.', 'detrex': 'transformer.', 'hf': 'model.'}.get(dialect, '')
    level_embed = state.get(LEVEL_EMBED[(OURS, *DIALECTS).index(dialect)])
    encoder, decoder = (
        _count(state, rf'{re.escape(prefix)}{coder}\.layers\.(\d+)\.')
        for coder in ('encoder', 'decoder')
    )
    if level_embed is None or not decoder:
        raise ValueError(
            f'the checkpoint is not a Deformable DETR as {dialect} writes it: there is no '
            f'{"level embedding" if level_embed is None else "decoder layer"}; name its origin '
            'with --from if it was recognised wrongly'
        )
    if level_embed.dim() != 2:
        raise ValueError(
            f'the level embedding has the shape {tuple(level_embed.shape)}, expected (levels, '
            'channels); the file is damaged'
        )
    levels = len(level_embed)
    if dialect in ('official', 'hf'):
        start = '' if dialect == 'official' else 'model.'
        kernels = [state.get(f'{start}input_proj.{i}.0.weight') for i in range(levels)]
        sizes = [k.shape[-1] for k in kernels if k is not None and k.dim() == 4]
        inputs = sizes.count(1) or levels
    else:
        inputs = _count(state, r'neck\.convs\.(\d+)\.') or levels
    two_stage = any('pos_trans' in name for name in state)
    return Layout(
        encoder, decoder, levels, inputs, _shares_branches(state, dialect, decoder), two_stage
    )


def _shares_branches(state: Mapping[str, Tensor], dialect: str, layers: int) -> bool:
    """Whether all decoder layers have one head."""
    # Only a decoder that refines boxes keeps a reference to the box heads.
    if any(re.search(r'decoder\.bbox_embed\.', name) for name in state):
        return False
    if dialect == OURS:
        return 'bbox_head.cls_branches.1.weight' not in state
    cls, reg = r'^class_embed\.(\d+)\.', r'^bbox_embed\.(\d+)\.'
    if dialect == 'mmdet':
        cls, reg = r'^bbox_head\.cls_branches\.(\d+)\.', r'^bbox_head\.reg_branches\.(\d+)\.'
    for pattern in (cls, reg):
        for name, tensor in state.items():
            match = re.match(pattern, name)
            if match and 0 < int(match[1]) < layers:
                first = state.get(name[: match.start(1)] + '0' + name[match.end(1) :])
                if first is None or not same_bits(first, tensor):
                    return False
    return True
