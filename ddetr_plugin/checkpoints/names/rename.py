"""Names and fused tensors of other implementations into ours and back."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ddetr_plugin.checkpoints.class_rows.rows import with_official_rows
from ddetr_plugin.checkpoints.names.detect import OURS, detect_architecture
from ddetr_plugin.checkpoints.names.ours import COUNTER, is_neck_bias, neck_bias_beside
from ddetr_plugin.checkpoints.names.table import DIALECTS, Architecture, module_names, translate
from ddetr_plugin.checkpoints.same_bits import same_bits

__all__ = ['export', 'import_state']

_QKV = re.compile(r'(.*self_attn\.)([qkv])_proj\.(weight|bias)')


def import_state(
    state: Mapping[str, Tensor], dialect: str, architecture: Architecture
) -> tuple[dict[str, Tensor], list[str]]:
    """Renames and fuses; class rows stay as they are.

    Args:
        state: in the common names of `dialect`.
        dialect: one of `DIALECTS`.
        architecture: decides which names there are.

    Returns:
        The weights by our names, and the names that have no counterpart here.

    Raises:
        ValueError: two names of one tensor hold different numbers, or parts of one do not fit.
    """
    if dialect == 'transformers':
        state = _fuse_qkv(state)
    modules = module_names(dialect, architecture).ours()
    ours: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        if name.endswith(COUNTER) and dialect != 'mmdet':
            continue
        new = translate(name, modules)
        if new is None:
            unknown.append(name)
        elif new not in ours:
            ours[new] = tensor
        elif not same_bits(ours[new], tensor):
            raise ValueError(
                f'{name} and another name of the same tensor hold different numbers, but a '
                f'{architecture.variant} model has one tensor there; the file was edited, or '
                '--config is of another variant'
            )
    return ours, unknown


def export(
    state: Mapping[str, Tensor],
    dialect: str,
    architecture: Architecture | None = None,
    coco: bool = False,
    dropped: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Our weights in the names of another implementation, aliases included.

    Biases of the neck that ours has not are zeros (D1), and zeros are left out for mmdet.

    Args:
        state: by our names.
        dialect: one of `DIALECTS`.
        architecture: of `state`; found out if None.
        coco: the 80 class rows are COCO's: 'official' and 'transformers' get their 91 rows. Rows
            that stand for no category are those of `dropped`, else they never fire.
        dropped: as in `Conversion`.

    Raises:
        ValueError: there is no such dialect; a tensor has no name there, or another meaning.
    """
    if dialect not in DIALECTS:
        raise ValueError(f'the dialects are {", ".join(DIALECTS)}, got {dialect!r}')
    architecture = architecture or detect_architecture(state, OURS)
    if dialect != 'transformers' and not architecture.share_branches and not architecture.refines:
        raise ValueError(
            f'{dialect} shares one head between all decoder layers where boxes are not refined, '
            'the weights have one for each; only ddetr_plugin and transformers can hold them'
        )
    state = {k: v for k, v in state.items() if dialect == 'mmdet' or not k.endswith(COUNTER)}
    if coco and dialect in ('official', 'transformers'):
        state = with_official_rows(state, dropped or {})
    _require_paper_queries(state)
    state = _with_their_neck_bias(state, dialect)

    names = module_names(dialect, architecture)
    theirs = {**names.theirs, 'backbone': names.backbone}
    others: dict[str, list[str]] = {}
    for alias, ours in names.aliases.items():
        others.setdefault(ours, []).append(alias)
    translated = {name: translate(name, theirs) for name in state}
    renamed = {name: new for name, new in translated.items() if new is not None}
    unknown = [name for name in state if name not in renamed]
    if unknown:
        raise ValueError(
            f'{dialect} has no counterpart of {len(unknown)} tensors: {_parts(unknown)}; only the '
            "paper's models can be written for it, not mask heads, other necks or other attention "
            '(tools/convert_checkpoint.py leaves a mask head out with --allow-missing, if --config '
            'is left out or names a model without one)'
        )
    result = {}
    for name, tensor in state.items():
        result[renamed[name]] = tensor
        module, _, parameter = name.rpartition('.')
        for alias in others.get(module, ()):
            result[f'{alias}.{parameter}'] = tensor
    return _split_qkv(result) if dialect == 'transformers' else result


def _parts(names: Sequence[str]) -> str:
    """The parts that tensors are of, such as 'neck.fpn_convs.*'."""
    return ', '.join(dict.fromkeys('.'.join(name.split('.')[:2]) + '.*' for name in names))


def _require_paper_queries(state: Mapping[str, Tensor]) -> None:
    """Refuse queries that other implementations cannot make from the same weights."""
    embedding = state.get('query_head.pos_trans_fc.weight')
    if embedding is not None and len(embedding) != embedding.shape[1]:
        raise ValueError(
            'query_head.pos_trans_fc embeds the position only, as ContentTwoStageHead does; other '
            "implementations know the paper's TwoStageHead alone"
        )


def _with_their_neck_bias(state: Mapping[str, Tensor], dialect: str) -> dict[str, Tensor]:
    """Zeros for biases that a neck of ours may be built without, and all but mmdet have (D1)."""
    if dialect == 'mmdet':
        biases = [name for name in state if is_neck_bias(name)]
        # Its neck has none by default, and zeros do nothing.
        without = not any(state[name].any() for name in biases)
        return {k: v for k, v in state.items() if not (without and k in biases)}
    result = {}
    for name, tensor in state.items():
        result[name] = tensor
        bias = neck_bias_beside(name)
        if bias is not None and bias not in state:
            result[bias] = tensor.new_zeros(len(tensor))
    return result


def _fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts: dict[str, dict[str, Tensor]] = {}
    fused = {}
    for name, tensor in state.items():
        match = _QKV.fullmatch(name)
        if match:
            parts.setdefault(f'{match[1]}in_proj_{match[3]}', {})[match[2]] = tensor
        else:
            fused[name] = tensor
    for name, qkv in parts.items():
        shapes = {tuple(part.shape) for part in qkv.values()}
        if len(shapes) > 1 or () in shapes:
            raise ValueError(
                f'the projections of {name.rpartition("in_proj_")[0]} have the shapes '
                f'{sorted(shapes)}, expected one; the file is damaged'
            )
        if len(qkv) == 3:
            fused[name] = torch.cat([qkv[x] for x in 'qkv'])
        else:  # to be reported as left over
            stem, _, kind = name.rpartition('in_proj_')
            fused.update((f'{stem}{x}_proj.{kind}', part) for x, part in qkv.items())
    return fused


def _split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split = {}
    for name, tensor in state.items():
        stem, found, kind = name.rpartition('in_proj_')
        if found:
            for x, part in zip('qkv', tensor.chunk(3)):
                split[f'{stem}{x}_proj.{kind}'] = part
        else:
            split[name] = tensor
    return split
