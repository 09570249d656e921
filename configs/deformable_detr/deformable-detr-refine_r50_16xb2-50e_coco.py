_base_ = './deformable-detr_r50_16xb2-50e_coco.py'

model = dict(decoder=dict(refine=True), bbox_head=dict(share_branches=False))
