"""Ablation (paper, table 2): FPN as neck. Published AP 43.8, as without it in that table."""

_base_ = '../deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    neck=dict(
        _delete_=True,
        type='FPN',
        in_channels=[512, 1024, 2048],
        out_channels={{_base_.embed_dims}},
        norm_cfg=dict(type='GN', num_groups=32),
        # The last level from the backbone's last features, as in the base.
        add_extra_convs='on_input',
        num_outs={{_base_.num_levels}},
    ),
)
