"""Weights of other implementations into ours and back: names, fused tensors, class rows."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddetr_plugin.checkpoints.classes import (
    COCO_GAPS,
    NEVER_BIAS,
    OFFICIAL_ROWS,
    ClassRows,
    coco_classes,
    coco_rows,
    fresh_rows,
    is_class_head,
    move_rows,
)
from ddetr_plugin.checkpoints.detect import OURS, detect_dialect, detect_layout
from ddetr_plugin.checkpoints.files import Source
from ddetr_plugin.checkpoints.names import (
    DIALECTS,
    Layout,
    module_names,
    translate,
    with_common_names,
)

__all__ = ['Conversion', 'checksum', 'export', 'import_state', 'to_ours']

COUNTER = 'num_batches_tracked'
PROPOSALS = 'query_head.cls_branch.'
_QKV = re.compile(r'(.*self_attn\.)([qkv])_proj\.(weight|bias)')
_NECK_BIAS = re.compile(r'neck\.(extra_)?convs\.\d+\.conv\.bias')


class Conversion(NamedTuple):
    """Weights in our names, and how they came about.

    Attributes:
        state: by our names.
        dialect: what they were written by.
        layout: their architecture.
        classes: name of each class row, or None where nobody says.
        notes: what was done besides renaming, a sentence each.
        problems: what does not fit; only with `allow_missing`.
        dropped: by our names, the class rows that have no place: (rows, ...), in order.
    """

    state: dict[str, Tensor]
    dialect: str
    layout: Layout
    classes: tuple[str | None, ...] | None
    notes: list[str]
    problems: list[str]
    dropped: dict[str, Tensor]


def import_state(
    state: Mapping[str, Tensor], dialect: str, layout: Layout
) -> tuple[dict[str, Tensor], list[str]]:
    """Renames and fuses; class rows stay as they are.

    Args:
        state: in the common names of `dialect`.
        dialect: one of `DIALECTS`.
        layout: decides which names there are.

    Returns:
        The weights by our names, and the names that are left over.

    Raises:
        ValueError: two names of one tensor hold different numbers.
    """
    if dialect == 'hf':
        state = _fuse_qkv(state)
    modules = module_names(dialect, layout).ours()
    ours, left = {}, []
    for name, tensor in state.items():
        if name.endswith(COUNTER) and dialect != 'mmdet':
            continue
        new = translate(name, modules)
        if new is None:
            left.append(name)
        elif new not in ours:
            ours[new] = tensor
        elif not torch.equal(ours[new], tensor):
            raise ValueError(
                f'{name} and another name of the same tensor hold different numbers, but a '
                f'{layout.variant} model has one tensor there; the file was edited, or --config '
                'is of another variant'
            )
    return ours, left


def export(
    state: Mapping[str, Tensor],
    dialect: str,
    layout: Layout | None = None,
    coco: bool = False,
    dropped: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Our weights in the names of another implementation, aliases included.

    Args:
        state: by our names.
        dialect: one of `DIALECTS`.
        layout: of `state`; found out if None.
        coco: the 80 class rows are COCO's: 'official' and 'hf' get their 91 rows. Rows that stand
            for no category are those of `dropped`, else they never fire.
        dropped: as in `Conversion`.

    Raises:
        ValueError: a tensor has no name there.
    """
    layout = layout or detect_layout(state, OURS)
    state = {k: v for k, v in state.items() if dialect == 'mmdet' or not k.endswith(COUNTER)}
    if coco and dialect in ('official', 'hf'):
        state = _with_official_rows(state, dropped or {})
    biases = [name for name in state if _NECK_BIAS.fullmatch(name)]
    if dialect == 'mmdet' and not any(state[name].any() for name in biases):
        # mmdet's neck has none by default, and zeros do nothing.
        state = {k: v for k, v in state.items() if k not in biases}

    names = module_names(dialect, layout)
    theirs = {**names.theirs, 'backbone': names.backbone}
    others: dict[str, list[str]] = {}
    for alias, ours in names.aliases.items():
        others.setdefault(ours, []).append(alias)
    result = {}
    for name, tensor in state.items():
        new = translate(name, theirs)
        if new is None:
            raise ValueError(
                f'{name} has no counterpart in {dialect}; only the weights of a model made of '
                "this package's Deformable DETR parts can be written for it"
            )
        result[new] = tensor
        module, _, parameter = name.rpartition('.')
        for alias in others.get(module, ()):
            result[f'{alias}.{parameter}'] = tensor
    return _split_qkv(result) if dialect == 'hf' else result


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
        if len(qkv) == 3:
            fused[name] = torch.cat([qkv[x] for x in 'qkv'])
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


def _with_official_rows(
    state: Mapping[str, Tensor], dropped: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    result = dict(state)
    kept = [row for row in range(OFFICIAL_ROWS) if row not in COCO_GAPS]
    for name, tensor in state.items():
        if not (is_class_head(name) or name.startswith(PROPOSALS)) or len(tensor) != len(kept):
            continue
        rest = dropped.get(name)
        if rest is None:
            rest = tensor.new_zeros(len(COCO_GAPS), *tensor.shape[1:])
            rest += NEVER_BIAS if tensor.dim() == 1 else 0
        if is_class_head(name):
            full = tensor.new_empty(OFFICIAL_ROWS, *tensor.shape[1:])
            full[kept], full[list(COCO_GAPS)] = tensor, rest.to(tensor)
        else:
            full = torch.cat((tensor, rest.to(tensor)))
        result[name] = full
    return result


def to_ours(
    source: Source,
    dialect: str = 'auto',
    target: Mapping[str, Tensor] | None = None,
    classes: Sequence[str] | str | None = None,
    target_classes: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> Conversion:
    """Weights of any dialect as ours.

    Args:
        source: the file.
        dialect: 'auto', 'ddetr_plugin' or one of `DIALECTS`.
        target: state dict of the model that will take them, of which only names and shapes are
            read; None if there is none to compare with.
        classes: names of the wanted classes, which move rows by name; 'keep' leaves the rows as
            they are; None does what `target` and `target_classes` ask for, and without them turns
            the official 91 rows into COCO's 80.
        target_classes: what the rows of `target` are, if known.
        allow_missing: report what is left over or missing instead of raising.

    Raises:
        ValueError: the dialect is unknown; keys are left over or missing, or shapes do not fit;
            classes cannot be mapped.
    """
    if dialect == 'auto':
        found = detect_dialect(source.state)
        for known in ('hf', 'detrex'):
            found = found or detect_dialect(with_common_names(source.state, known))
        if found is None:
            some = ', '.join(list(source.state)[:5])
            raise ValueError(
                'the weights are of no Deformable DETR that is known here: none of '
                f'{", ".join((OURS, *DIALECTS))}; the names begin with {some}. Name the origin '
                'with --from if it is one of them'
            )
        dialect = found
    state = with_common_names(source.state, dialect)
    layout = detect_layout(state, dialect)
    wanted = detect_layout(target, OURS) if target is not None else None
    if wanted is not None and layout.share_branches and not wanted.share_branches:
        # Heads of a model that has not been trained yet are equal without being shared.
        one = layout._replace(share_branches=False)
        if dialect != OURS and _has_all_heads(state, dialect, one):
            layout = one

    notes: list[str] = []
    left: list[str] = []
    if dialect == OURS:
        ours = dict(state)
    else:
        ours, left = import_state(state, dialect, layout)
        if dialect == 'mmdet':
            filled = _fill_neck_bias(ours, layout, target)
            if filled:
                notes.append(f'{filled} biases of the neck, which mmdet leaves out, are zero (D1)')
    problems = [f'left over: {name}' for name in left]
    if dialect != OURS:
        problems += [f'missing: {name}' for name in _expected(layout) if name not in ours]

    names, dropped = _map_classes(
        ours, source.meta, target, classes, target_classes, notes, problems, allow_missing
    )
    if target is not None:
        problems = [p for p in problems if not p.startswith('missing')]
        problems += _misfits(ours, target, layout, wanted)
    if problems and not allow_missing:
        raise ValueError(_explain(problems, dialect, layout))
    return Conversion(ours, dialect, layout, names, notes, problems, dropped)


def _has_all_heads(state: Mapping[str, Tensor], dialect: str, layout: Layout) -> bool:
    ours, _ = import_state(state, dialect, layout)
    return all(f'bbox_head.cls_branches.{j}.weight' in ours for j in range(layout.decoder_layers))


def _fill_neck_bias(
    ours: dict[str, Tensor], layout: Layout, target: Mapping[str, Tensor] | None
) -> int:
    """Adds zero biases where mmdet has none and the target, if there is one, wants them."""
    filled = 0
    for name in [n for n in ours if re.fullmatch(r'neck\.(extra_)?convs\.\d+\.conv\.weight', n)]:
        bias = name.removesuffix('weight') + 'bias'
        if bias not in ours and (target is None or bias in target):
            ours[bias] = ours[name].new_zeros(len(ours[name]))
            filled += 1
    return filled


def _expected(layout: Layout) -> list[str]:
    """Our parameters of a layout, the backbone's excepted."""
    names = []
    for module in module_names('mmdet', layout).theirs:
        if module.endswith('level_embed'):
            names.append(module)
        elif module.endswith('self_attn.attn'):
            names += [f'{module}.in_proj_weight', f'{module}.in_proj_bias']
            names += [f'{module}.out_proj.weight', f'{module}.out_proj.bias']
        else:
            names.append(f'{module}.weight')
            if not module.endswith('query_embedding'):
                names.append(f'{module}.bias')
    return names


def _misfits(
    ours: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    layout: Layout,
    wanted: Layout | None,
) -> list[str]:
    problems = []
    if wanted is not None and layout.variant != wanted.variant:
        problems.append(f'variant: the weights are {layout.variant}, the model is {wanted.variant}')
    for name, tensor in target.items():
        if name not in ours:
            if not name.endswith(COUNTER):
                problems.append(f'missing: {name}')
        elif ours[name].shape != tensor.shape:
            problems.append(
                f'shape: {name} is {tuple(ours[name].shape)}, the model has {tuple(tensor.shape)}'
            )
    problems += [f'left over: {n}' for n in ours if n not in target and not n.endswith(COUNTER)]
    return problems


def _explain(problems: Sequence[str], dialect: str, layout: Layout) -> str:
    return (
        f'the weights ({dialect}, {layout.variant}: {layout.encoder_layers} encoder and '
        f'{layout.decoder_layers} decoder layers, {layout.levels} levels) do not fit; '
        f'{len(problems)} problems:\n  ' + '\n  '.join(problems) + '\n'
        'Give the config of the same variant and size, or --allow-missing to go on without these'
    )


def source_classes(meta: Mapping, rows: int) -> list[str | None] | None:
    """What the rows of a class head stand for, as far as the file or their number says."""
    names = meta.get('row_names') or (meta.get('dataset_meta') or {}).get('classes')
    if names is not None and len(names) == rows:
        return list(names)
    if rows == OFFICIAL_ROWS:
        return coco_rows()
    return list(coco_classes()) if rows == OFFICIAL_ROWS - len(COCO_GAPS) else None


def _map_classes(
    ours: dict[str, Tensor],
    meta: Mapping,
    target: Mapping[str, Tensor] | None,
    classes: Sequence[str] | str | None,
    target_classes: Sequence[str] | None,
    notes: list[str],
    problems: list[str],
    allow_missing: bool,
) -> tuple[tuple[str | None, ...] | None, dict[str, Tensor]]:
    """Moves class rows within `ours`; returns the names of the rows and the rows left out."""
    heads = [name for name in ours if is_class_head(name)]
    if not heads:
        return None, {}
    rows = len(ours[heads[0]])
    known = source_classes(meta, rows)
    wanted_rows = next((len(t) for n, t in (target or {}).items() if is_class_head(n)), None)
    plan = _plan(known, rows, wanted_rows, classes, target_classes)
    dropped: dict[str, Tensor] = {}
    if plan is None:
        return (None if known is None else tuple(known)), dropped
    if plan.source != tuple(range(rows)):
        taken = [row for row in plan.source if row is not None]
        rest = [row for row in range(rows) if row not in taken]
        for name in heads:
            old = ours[name]
            ours[name] = move_rows(old, plan.source, fresh_rows(name, len(plan.source), old))
            if rest and not plan.fresh:
                dropped[name] = old[rest].clone()
        notes.append(
            f'class rows: {len(taken)} of {rows} moved'
            + (f', {len(rest)} left out' if rest else '')
            + (f', fresh: {", ".join(plan.fresh)}' if plan.fresh else '')
        )
    wanted = next((len(t) for n, t in (target or {}).items() if n.startswith(PROPOSALS)), None)
    for name in [n for n in ours if n.startswith(PROPOSALS)]:
        old, count = ours[name], wanted or len(plan.source)
        if len(old) > count and not plan.fresh:
            dropped[name] = old[count:].clone()
        new = torch.cat((old[:count], fresh_rows(name, max(count - len(old), 0), old)))
        if len(new) != len(old):
            notes.append(f'{name}: the first {min(count, len(old))} rows in place (row 0: object)')
        ours[name] = new.clone()
    return plan.classes, dropped


def _plan(
    known: Sequence[str | None] | None,
    rows: int,
    wanted_rows: int | None,
    classes: Sequence[str] | str | None,
    target_classes: Sequence[str] | None,
) -> ClassRows | None:
    """Which row goes where; None leaves them all."""
    if classes == 'keep':
        return None
    if classes is None:
        if wanted_rows is None:
            official = rows == OFFICIAL_ROWS and known == coco_rows()
            return ClassRows.by_name(known, coco_classes()) if official else None
        names = target_classes if target_classes and len(target_classes) == wanted_rows else None
        if rows == wanted_rows:
            same = names and known and sorted(map(str, known)) == sorted(map(str, names))
            return ClassRows.by_name(known, names) if same else None
        if names is None:
            if rows != OFFICIAL_ROWS or wanted_rows != OFFICIAL_ROWS - len(COCO_GAPS):
                return None  # the shapes do not fit, and are reported
            names = coco_classes()
        classes = names
    if known is None:
        if len(classes) == rows:
            return ClassRows(tuple(range(rows)), tuple(classes))
        raise ValueError(
            f'the weights have {rows} class rows and do not say of which classes, so they cannot '
            f'be moved to the {len(classes)} wanted by name; use --classes keep, or name all '
            f'{rows} of them'
        )
    return ClassRows.by_name(known, classes)


def checksum(state: Mapping[str, Tensor]) -> str:
    """sha256, 16 hexadecimal digits, over names, dtypes, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f'{name}|{tensor.dtype}|{tuple(tensor.shape)}|'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
