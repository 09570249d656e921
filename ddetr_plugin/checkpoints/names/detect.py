"""Which implementation wrote a state dict, and of which architecture."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ddetr_plugin.checkpoints.names.mmdet_2 import START as MMDET_2_START
from ddetr_plugin.checkpoints.names.table import DIALECTS, LEVEL_EMBED, Architecture
from ddetr_plugin.checkpoints.same_bits import same_bits

__all__ = ['OURS', 'detect_dialect', 'detect_architecture', 'find_models']

OURS = 'ddetr_plugin'
_MMDET_2 = 'mmdet 2.x'
_LEVEL_EMBED = {
    **dict(zip((OURS, *DIALECTS), LEVEL_EMBED)),
    _MMDET_2: f'{MMDET_2_START}level_embeds',
}
# Before the names of encoder and decoder, where there is anything.
_START = {
    'official': 'transformer.',
    'transformers': 'model.',
    'detrex': 'transformer.',
    _MMDET_2: MMDET_2_START,
}


def detect_dialect(names: Iterable[str]) -> str | None:
    """'ddetr_plugin' or one of `DIALECTS`; None if the names are of no Deformable DETR.

    Args:
        names: without prefixes, and of mmdet 3, as `unwrap` leaves them.

    Raises:
        ValueError: the names are those of mmdet 2.x.
    """
    names = set(names)
    for dialect, name in _LEVEL_EMBED.items():
        if name in names:
            if dialect == _MMDET_2:
                raise ValueError(
                    f'the names are those of mmdet 2.x ({name}), expected those of mmdet 3; '
                    'ddetr_plugin.checkpoints.unwrap renames them'
                )
            return dialect
    return OURS if '' in _without_encoder(names) else None


def _without_encoder(names: Iterable[str]) -> list[str]:
    """The prefixes of models of ours that have no encoder: nobody else has a query head."""
    decoder = 'decoder.layers.0.norms.0.weight'
    names = set(names)
    prefixes = [name.removesuffix(decoder) for name in names if name.endswith(decoder)]
    return [
        prefix
        for prefix in prefixes
        if any(name.startswith(f'{prefix}query_head.') for name in names)
        and f'{prefix}{_LEVEL_EMBED[OURS]}' not in names
    ]


def find_models(names: Iterable[str]) -> list[tuple[str, str]]:
    """(dialect, prefix) of every Deformable DETR among `names`, also of mmdet 2.x.

    Some names are those of one dialect, or another's behind a prefix: `model.level_embed` is
    transformers', and that of an mmdet model called `model`. The decoder's layers and the class
    heads tell; where they do not, the shorter prefix is right.
    """
    names = list(names)
    found = []
    for name in names:
        candidates = []
        for dialect, level_embed in _LEVEL_EMBED.items():
            if name == level_embed or name.endswith(f'.{level_embed}'):
                prefix = name.removesuffix(level_embed)
                of_mmdet = dialect in (OURS, 'mmdet', _MMDET_2)
                landmarks = (
                    f'{prefix}{_START.get(dialect, "")}decoder.layers.',
                    f'{prefix}{"bbox_head.cls_branches." if of_mmdet else "class_embed."}',
                )
                seen = sum(any(n.startswith(mark) for n in names) for mark in landmarks)
                candidates.append((seen, -len(prefix), dialect, prefix))
        found += [max(candidates)] if candidates else []
    found += [(2, -len(prefix), OURS, prefix) for prefix in _without_encoder(names)]
    # A name of another part may end as a level embedding does.
    most = max((seen for seen, *_ in found), default=0)
    return [(dialect, prefix) for seen, _, dialect, prefix in found if seen == most]


def _count(names: Iterable[str], pattern: str) -> int:
    """1 + the largest number that the pattern's group matches; 0 if nothing matches."""
    found = (re.match(pattern, name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def detect_architecture(state: Mapping[str, Tensor], dialect: str) -> Architecture:
    """The architecture of `state`, whose names are the common ones of `dialect`.

    Heads that are all the same count as shared, unless the file stores them as those of a model
    with refinement does; others count as those of such a model. Whether the backbone is dilated
    (DC5) does not show in weights.

    Raises:
        ValueError: a part without which nothing can be said is missing.
    """
    prefix = _START.get(dialect, '')
    level_embed = state.get(_LEVEL_EMBED[dialect])
    encoder, decoder = (
        _count(state, rf'{re.escape(prefix)}{coder}\.layers\.(\d+)\.')
        for coder in ('encoder', 'decoder')
    )
    inputs = _count(state, r'neck\.convs\.(\d+)\.')
    if level_embed is None and dialect == OURS and decoder:
        # Without an encoder, no embedding counts the levels.
        levels = inputs + _count(state, r'neck\.extra_convs\.(\d+)\.')
        shared = _shares_branches(state, dialect, decoder)
        return Architecture(
            0, decoder, levels, inputs, shared, _two_stage(state), refines=not shared
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
    if dialect in ('official', 'transformers'):
        start = '' if dialect == 'official' else 'model.'
        kernels = [state.get(f'{start}input_proj.{i}.0.weight') for i in range(levels)]
        sizes = [k.shape[-1] for k in kernels if k is not None and k.dim() == 4]
        inputs = sizes.count(1) or levels
    shared = _shares_branches(state, dialect, decoder)
    return Architecture(
        encoder, decoder, levels, inputs or levels, shared, _two_stage(state), refines=not shared
    )


def _two_stage(state: Mapping[str, Tensor]) -> bool:
    return any('pos_trans' in name for name in state)


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
