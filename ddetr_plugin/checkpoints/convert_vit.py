"""Weights of plain vision transformers, as timm, DeiT, DINO, MAE and transformers write them."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddetr_plugin.checkpoints.files.reading import unwrap

__all__ = ['adopt_vit', 'vit_weights']

# Layout of the files that transformers saves (google/vit-base-patch16-224): name -> ours. Ours
# are the names of timm, DeiT, DINO and MAE.
_TRANSFORMERS = {
    'embeddings.cls_token': 'cls_token',
    'embeddings.position_embeddings': 'pos_embed',
    'embeddings.patch_embeddings.projection': 'patch_embed.proj',
    'layernorm': 'norm',
}
_IN_BLOCK = {
    'layernorm_before': 'norm1',
    'attention.attention.query': 'attn.q',
    'attention.attention.key': 'attn.k',
    'attention.attention.value': 'attn.v',
    'attention.output.dense': 'attn.proj',
    'layernorm_after': 'norm2',
    'intermediate.dense': 'mlp.fc1',
    'output.dense': 'mlp.fc2',
}
_BLOCK = re.compile(r'encoder\.layer\.(\d+)\.(.+)')
_HEADS = re.compile(r'(head|fc_norm|pre_logits|classifier|pooler)\.')


def vit_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names of `VisionTransformer`, without classification heads.

    Args:
        state: names as in timm, DeiT, DINO and MAE, or as in files of transformers, with or
            without the prefix `vit.`. Other names stay.
    """
    state = {name.removeprefix('vit.'): tensor for name, tensor in state.items()}
    weights = {_ours(n): t for n, t in state.items() if not _HEADS.match(n)}
    for name in [name for name in weights if '.attn.q.' in name]:
        names = [name.replace('.attn.q.', f'.attn.{part}.') for part in 'qkv']
        if all(part in weights for part in names):
            parts = [weights.pop(part) for part in names]
            weights[name.replace('.attn.q.', '.attn.qkv.')] = torch.cat(parts)
    return weights


def _ours(name: str) -> str:
    module, _, parameter = name.rpartition('.')
    block = _BLOCK.fullmatch(module)
    if block and block[2] in _IN_BLOCK:
        return f'blocks.{block[1]}.{_IN_BLOCK[block[2]]}.{parameter}'
    if name in _TRANSFORMERS:
        return _TRANSFORMERS[name]
    return f'{_TRANSFORMERS[module]}.{parameter}' if module in _TRANSFORMERS else name


def adopt_vit(state_dict: dict, model: nn.Module) -> None:
    """Rewrites in place what `model` is about to load; see `vit_weights`.

    Args:
        state_dict: weights, also one level down, as in `{'model': ...}`.
        model: a `VisionTransformer`.

    Raises:
        RuntimeError: weights are missing, left over or of another shape, as `load_state_dict`
            raises it. mmengine, which initialises from files, would only warn.
    """
    weights = vit_weights(unwrap(state_dict).state)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = []
    for kind, names in (
        ('missing', wanted.keys() - weights.keys()),
        ('left over', weights.keys() - wanted.keys()),
    ):
        if names:
            shown = sorted(names)
            more = f' and {len(shown) - 8} more' if len(shown) > 8 else ''
            problems.append(f'{kind}: {", ".join(shown[:8])}{more}')
    for name in sorted(wanted.keys() & weights.keys()):
        if weights[name].shape != wanted[name]:
            problems.append(
                f'{name} is {tuple(weights[name].shape)}, expected {tuple(wanted[name])}'
            )
            if name == 'pos_embed':
                problems[-1] += _positions_hint(weights)
    if problems:
        raise RuntimeError(
            'the weights are not those of this VisionTransformer:\n  ' + '\n  '.join(problems)
        )
    state_dict.clear()
    state_dict.update(weights)


def _positions_hint(weights: Mapping[str, Tensor]) -> str:
    grid = round((weights['pos_embed'].shape[1] - 1) ** 0.5)
    kernel = weights.get('patch_embed.proj.weight')
    if grid**2 + 1 != weights['pos_embed'].shape[1] or kernel is None:
        return ' (the class token and a square of positions)'
    return f' (set image_size={grid * kernel.shape[-1]})'
