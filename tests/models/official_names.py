"""Parameter names of the official release (fundamentalvision/Deformable-DETR) in our models."""

import re

# Rewritten in this order, each rule once, on what the rules before it left.
RULES = (
    (r'^backbone\.0\.body\.', 'backbone.'),
    (r'^transformer\.level_embed$', 'encoder.level_embed'),
    (r'^query_embed\.', 'query_head.query_embedding.'),
    (r'^transformer\.reference_points\.', 'query_head.reference_points_fc.'),
    (r'^transformer\.enc_output(_norm)?\.', r'query_head.memory_trans\1.'),
    (r'^transformer\.pos_trans(_norm)?\.', r'query_head.pos_trans\1.'),
    (r'^query_head\.(memory|pos)_trans\.', r'query_head.\1_trans_fc.'),
    # With refinement the official heads have these longer names, and the short ones as aliases.
    (r'^transformer\.decoder\.(class|bbox)_embed\.', r'\1_embed.'),
    (r'^class_embed\.(\d+)\.', r'bbox_head.cls_branches.\1.'),
    (r'^bbox_embed\.(\d+)\.layers\.0\.', r'bbox_head.reg_branches.\1.0.'),
    (r'^bbox_embed\.(\d+)\.layers\.1\.', r'bbox_head.reg_branches.\1.2.'),
    (r'^bbox_embed\.(\d+)\.layers\.2\.', r'bbox_head.reg_branches.\1.4.'),
    (r'^transformer\.(en|de)coder\.', r'\1coder.'),
    (r'^encoder\.(.*)\.norm1\.', r'encoder.\1.norms.0.'),
    (r'^encoder\.(.*)\.norm2\.', r'encoder.\1.norms.1.'),
    (r'^decoder\.(.*)\.norm2\.', r'decoder.\1.norms.0.'),
    (r'^decoder\.(.*)\.norm1\.', r'decoder.\1.norms.1.'),
    (r'^decoder\.(.*)\.norm3\.', r'decoder.\1.norms.2.'),
    (r'\.linear1\.', '.ffn.layers.0.0.'),
    (r'\.linear2\.', '.ffn.layers.1.'),
    (r'^decoder\.(.*)\.self_attn\.(in|out)_proj', r'decoder.\1.self_attn.attn.\2_proj'),
)


def our_name(official: str, num_levels: int, num_layers: int, share_branches: bool) -> str:
    """Our name of an official parameter.

    Args:
        official: a key of the official state dict.
        num_levels: feature maps of the backbone that the input projection reads; the projections
            after them are the extra levels.
        num_layers: layers of the decoder; the head after the last one scores the proposals.
        share_branches: as in our `DeformableDETRHead`: every layer's head is one object.
    """
    name = official
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    if match := re.match(r'input_proj\.(\d+)\.([01])\.(.*)', name):
        level, part = int(match[1]), ('conv', 'gn')[int(match[2])]
        place = f'convs.{level}' if level < num_levels else f'extra_convs.{level - num_levels}'
        return f'neck.{place}.{part}.{match[3]}'
    if match := re.match(r'bbox_head\.(cls|reg)_branches\.(\d+)\.(.*)', name):
        kind, layer, rest = match[1], int(match[2]), match[3]
        if share_branches:
            return f'bbox_head.{kind}_branches.0.{rest}'
        if layer == num_layers:
            return f'query_head.{kind}_branch.{rest}'
    return name
