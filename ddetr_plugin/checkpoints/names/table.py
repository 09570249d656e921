"""What each implementation calls the modules of a Deformable DETR: one table, read both ways."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ddetr_plugin.checkpoints.names.resnets import detectron2_resnet, transformers_resnet
from ddetr_plugin.checkpoints.same_bits import by_new_name

__all__ = [
    'DIALECTS',
    'PARTS',
    'Architecture',
    'Names',
    'has_transformers_resnet',
    'module_names',
    'translate',
    'with_common_names',
    'with_transformers_resnet',
]

# The columns of the tables, after our own name.
DIALECTS = ('official', 'mmdet', 'transformers', 'detrex')

# The parts of our detector that files of other implementations have weights for. All others, such
# as `mask_head`, are heads for further tasks.
PARTS = ('backbone', 'neck', 'encoder', 'query_head', 'decoder', 'bbox_head')

# The row that tells the dialects apart: each has a name of its own for it.
LEVEL_EMBED = (
    'encoder.level_embed',
    'transformer.level_embed',
    'level_embed',
    'model.level_embed',
    'transformer.level_embeds',
)
_LEARNED = (
    ('query_head.query_embedding', 'query_embed', 'query_embedding',
     'model.query_position_embeddings', 'query_embedding'),
    ('query_head.reference_points_fc', 'transformer.reference_points', 'reference_points_fc',
     'model.reference_points', 'transformer.reference_points'),
)  # fmt: skip
_TWO_STAGE = (
    ('query_head.memory_trans_fc', 'transformer.enc_output', 'memory_trans_fc',
     'model.enc_output', 'transformer.enc_output'),
    ('query_head.memory_trans_norm', 'transformer.enc_output_norm', 'memory_trans_norm',
     'model.enc_output_norm', 'transformer.enc_output_norm'),
    ('query_head.pos_trans_fc', 'transformer.pos_trans', 'pos_trans_fc',
     'model.pos_trans', 'transformer.pos_trans'),
    ('query_head.pos_trans_norm', 'transformer.pos_trans_norm', 'pos_trans_norm',
     'model.pos_trans_norm', 'transformer.pos_trans_norm'),
)  # fmt: skip
# {k}: the level counted over all levels, {i}: over those of its kind.
_LEVEL = (
    ('neck.{kind}.{i}.conv', 'input_proj.{k}.0', 'neck.{kind}.{i}.conv',
     'model.input_proj.{k}.0', 'neck.{kind}.{i}.conv'),
    ('neck.{kind}.{i}.gn', 'input_proj.{k}.1', 'neck.{kind}.{i}.gn',
     'model.input_proj.{k}.1', 'neck.{kind}.{i}.norm'),
)  # fmt: skip
# Below the prefix of a layer.
_LAYER_PREFIX = ('{coder}', 'transformer.{coder}', '{coder}', 'model.{coder}',
                 'transformer.{coder}')  # fmt: skip
_FFN = (
    ('ffn.layers.0.0', 'linear1', 'ffn.layers.0.0', 'fc1', 'ffns.0.layers.0.0'),
    ('ffn.layers.1', 'linear2', 'ffn.layers.1', 'fc2', 'ffns.0.layers.1'),
)
_ENCODER = (
    ('self_attn', 'self_attn', 'self_attn', 'self_attn', 'attentions.0'),
    ('norms.0', 'norm1', 'norms.0', 'self_attn_layer_norm', 'norms.0'),
    ('norms.1', 'norm2', 'norms.1', 'final_layer_norm', 'norms.1'),
    *_FFN,
)
_DECODER = (
    ('self_attn.attn', 'self_attn', 'self_attn.attn', 'self_attn', 'attentions.0.attn'),
    ('cross_attn', 'cross_attn', 'cross_attn', 'encoder_attn', 'attentions.1'),
    ('norms.0', 'norm2', 'norms.0', 'self_attn_layer_norm', 'norms.0'),
    ('norms.1', 'norm1', 'norms.1', 'encoder_attn_layer_norm', 'norms.1'),
    ('norms.2', 'norm3', 'norms.2', 'final_layer_norm', 'norms.2'),
    *_FFN,
)
_DEFORMABLE = ('sampling_offsets', 'attention_weights', 'value_proj', 'output_proj')
# Class head and n-th linear layer of the box head. {j}: the decoder layer; the proposal head
# follows the last one. {m}: its place between activations.
_HEADS = ('class_embed.{j}', 'bbox_embed.{j}.layers.{n}')
_MMDET_HEADS = ('bbox_head.cls_branches.{j}', 'bbox_head.reg_branches.{j}.{m}')
_DECODER_ALIAS = {
    'official': 'transformer.decoder.',
    'transformers': 'model.decoder.',
    'detrex': 'transformer.decoder.',
}
BACKBONE = {
    'official': 'backbone.0.body',
    'mmdet': 'backbone',
    'transformers': 'model.backbone.conv_encoder.model',
    'detrex': 'backbone',
}


class Architecture(NamedTuple):
    """The architecture of a checkpoint, as far as it decides names.

    Attributes:
        encoder_layers: number of encoder layers.
        decoder_layers: N, number of decoder layers.
        levels: L, feature levels.
        inputs: how many of the levels come from the backbone; the others are convolved from them.
        share_branches: one head for all decoder layers (no iterative refinement).
        two_stage: queries are region proposals.
        refines: whether a layer refines the box of the one before. Then each has its own head; so
            it may without, where transformers does not tie them (tie_word_embeddings=False).
    """

    encoder_layers: int
    decoder_layers: int
    levels: int
    inputs: int
    share_branches: bool
    two_stage: bool
    refines: bool

    @property
    def variant(self) -> str:
        """'two-stage', 'refine', 'single-scale' or 'base', or two of them."""
        names = ['single-scale'] if self.levels == 1 else []
        if self.two_stage:
            names.append('two-stage')
        elif self.refines:
            names.append('refine')
        return ', '.join(names) or 'base'


class Names(NamedTuple):
    """Module names of an architecture in one dialect.

    Attributes:
        theirs: our module (or parameter) to theirs.
        aliases: their second names of the same tensors, to ours.
        backbone: the prefix of what is not in `theirs`, to which 'backbone' belongs.
    """

    theirs: dict[str, str]
    aliases: dict[str, str]
    backbone: str

    def ours(self) -> dict[str, str]:
        """Their module to ours, second names included."""
        return {**{v: k for k, v in self.theirs.items()}, **self.aliases, self.backbone: 'backbone'}


def module_names(dialect: str, architecture: Architecture) -> Names:
    """The names of every module with parameters of its own, in one of `DIALECTS`."""
    column = 1 + DIALECTS.index(dialect)
    theirs = {LEVEL_EMBED[0]: LEVEL_EMBED[column]}

    for row in _TWO_STAGE if architecture.two_stage else _LEARNED:
        theirs[row[0]] = row[column]
    for k in range(architecture.levels):
        kind, i = (
            ('convs', k) if k < architecture.inputs else ('extra_convs', k - architecture.inputs)
        )
        for row in _LEVEL:
            names = [row[c].format(kind=kind, i=i, k=k) for c in (0, column)]
            theirs[names[0]] = names[1]
    for coder, count, rows in (
        ('encoder', architecture.encoder_layers, _ENCODER),
        ('decoder', architecture.decoder_layers, _DECODER),
    ):
        for i in range(count):
            ours, other = (
                f'{_LAYER_PREFIX[c].format(coder=coder)}.layers.{i}.' for c in (0, column)
            )
            for row in rows:
                deformable = row[0] == {'encoder': 'self_attn', 'decoder': 'cross_attn'}[coder]
                for part in [f'.{p}' for p in _DEFORMABLE] if deformable else ['']:
                    theirs[ours + row[0] + part] = other + row[column] + part

    aliases = {}
    heads = [('bbox_head.{kind}_branches.' + str(0 if architecture.share_branches else j), j)
             for j in range(architecture.decoder_layers)]  # fmt: skip
    if architecture.two_stage:
        heads.append(('query_head.{kind}_branch', architecture.decoder_layers))
    their_cls, their_reg = _MMDET_HEADS if dialect == 'mmdet' else _HEADS
    for head, j in heads:
        cls = [(head.format(kind='cls'), their_cls.format(j=j))]
        reg = [
            (f'{head.format(kind="reg")}.{2 * n}', their_reg.format(j=j, n=n, m=2 * n))
            for n in range(3)
        ]
        for ours, other in cls + reg:
            if ours in theirs:
                aliases[other] = ours
            else:
                theirs[ours] = other
        # The decoder refers to the heads that it needs, and saves them a second time.
        prefix = _DECODER_ALIAS.get(dialect)
        second = (cls if architecture.two_stage else []) + (reg if architecture.refines else [])
        if prefix:
            aliases.update((prefix + other, ours) for ours, other in second)

    if dialect == 'detrex':
        theirs.update(detectron2_resnet())
    return Names(theirs, aliases, BACKBONE[dialect])


def translate(name: str, modules: Mapping[str, str]) -> str | None:
    """`name` with its longest known module replaced; None if no module is known."""
    end = len(name)
    while end > 0:
        if name[:end] in modules:
            return modules[name[:end]] + name[end:]
        end = name.rfind('.', 0, end)
    return None


# Releases of one library call some modules differently; the table has the older names.
_RENAMED = {
    'transformers': (
        (r'^model\.backbone\.model\.', 'model.backbone.conv_encoder.model.'),
        (r'(^model\.backbone\.conv_encoder\.model\.)_backbone\.', r'\1'),
        (r'(layers\.\d+)\.mlp\.fc', r'\1.fc'),
        (r'self_attn\.o_proj\.', 'self_attn.out_proj.'),
    ),
    # Spelled so in some releases.
    'detrex': ((r'^transformer\.enc_outpout_norm\.', 'transformer.enc_output_norm.'),),
}


def with_common_names(state: Mapping[str, Tensor], dialect: str) -> dict[str, Tensor]:
    """`state` with the names that the table has, whichever release of the library wrote it.

    Raises:
        ValueError: two names are one in the table, but their tensors differ.
    """
    renamed = []
    prefix = BACKBONE['transformers'] + '.'
    native = transformers_resnet() if dialect == 'transformers' else {}
    for old, tensor in state.items():
        name = old
        for pattern, replacement in _RENAMED.get(dialect, ()):
            name = re.sub(pattern, replacement, name)
        if native and name.startswith(prefix):
            name = prefix + (translate(name.removeprefix(prefix), native) or name[len(prefix) :])
        renamed.append((name, old, tensor))
    return by_new_name(renamed)


def has_transformers_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether the backbone of a state dict in transformers' names is transformers' own ResNet."""
    return any('.embedder.embedder.convolution.' in name for name in state)


def with_transformers_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse, for the backbone: transformers' own ResNet instead of timm's names."""
    prefix = BACKBONE['transformers'] + '.'
    native = {v: k for k, v in transformers_resnet().items()}
    return {
        prefix + (translate(name.removeprefix(prefix), native) or '') if name.startswith(prefix)
        else name: tensor
        for name, tensor in state.items()
    }  # fmt: skip
