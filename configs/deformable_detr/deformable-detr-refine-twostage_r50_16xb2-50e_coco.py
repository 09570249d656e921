_base_ = './deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    query_head=dict(type='ddetr_plugin.TwoStageHead', num_classes=80),
    decoder=dict(refine=True),
    # Proposals have a size already: boxes start at it.
    bbox_head=dict(share_branches=False, initial_size_logit=0.0),
)
