"""The models that run.py compares: one backbone, width and depth for all."""

from mmengine.config import Config

__all__ = ['MODELS', 'make_model']

# Class of the head and what refines, over the small two-stage model of the demo.
DEFORMABLE = {
    'deformable': dict(refine=False, query_head='LearnedQueryHead'),
    'deformable-refine': dict(refine=True, query_head='LearnedQueryHead'),
    'deformable-two-stage': dict(refine=True, query_head='TwoStageHead'),
}
MODELS = ('detr', 'detr-dc5', *DEFORMABLE)


def make_model(name, demo, num_classes, num_queries):
    """The config of one model.

    Args:
        name: of MODELS.
        demo: the model of the demo's config; gives backbone, width and depth, and stays as it is.
        num_classes: of the data.
        num_queries: of the decoder.

    Returns:
        dict.
    """
    if name in DEFORMABLE:
        return _deformable(demo, num_classes, num_queries, **DEFORMABLE[name])
    return _detr(demo, num_classes, num_queries, dilated=name == 'detr-dc5')


def _deformable(demo, num_classes, num_queries, refine, query_head):
    """The paper's own heads and criterion, not the demo's."""
    head = dict(
        _delete_=True,
        type=f'ddetr_plugin.{query_head}',
        num_queries=num_queries,
        embed_dims=demo.neck.out_channels,
    )
    bbox_head = dict(num_classes=num_classes, share_branches=not refine)
    if query_head == 'TwoStageHead':
        head['num_classes'] = num_classes
    else:
        # The demo's boxes start at the size of a proposal; here there is none.
        bbox_head = dict(demo.bbox_head, **bbox_head, _delete_=True)
        bbox_head.pop('initial_size_logit', None)
    loss_cls = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0)
    config = Config(dict(model=demo.to_dict()))
    config.merge_from_dict(
        dict(
            model=dict(
                query_head=head,
                decoder=dict(refine=refine),
                bbox_head=bbox_head,
                criterion=dict(
                    type='ddetr_plugin.SetCriterion', loss_cls=dict(loss_cls, _delete_=True)
                ),
            )
        )
    )
    return config.model.to_dict()


def _detr(demo, num_classes, num_queries, dilated):
    """mmdet's DETR (arXiv:2005.12872) on the same backbone, and as wide and deep."""
    width = demo.neck.out_channels
    layer = demo.encoder.layer
    dropout = layer.dropout
    attention = dict(
        embed_dims=width, num_heads=layer.self_attn.num_heads, dropout=dropout, batch_first=True
    )
    ffn = dict(
        embed_dims=width,
        feedforward_channels=layer.ffn.feedforward_channels,
        num_fcs=2,
        ffn_drop=dropout,
        act_cfg=dict(type='ReLU', inplace=True),
    )
    backbone = dict(demo.backbone.to_dict(), out_indices=(5,))
    if dilated:
        backbone['type'] = 'ddetr_plugin.DilatedEfficientNetLite0'
    return dict(
        type='DETR',
        num_queries=num_queries,
        data_preprocessor=demo.data_preprocessor.to_dict(),
        backbone=backbone,
        neck=dict(
            type='ChannelMapper',
            in_channels=demo.neck.in_channels[-1:],
            kernel_size=1,
            out_channels=width,
            act_cfg=None,
            norm_cfg=None,
            num_outs=1,
        ),
        encoder=dict(
            num_layers=demo.encoder.num_layers,
            layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn),
        ),
        decoder=dict(
            num_layers=demo.decoder.num_layers,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
            return_intermediate=True,
        ),
        positional_encoding=dict(num_feats=width // 2, normalize=True),
        bbox_head=dict(
            type='DETRHead',
            num_classes=num_classes,
            embed_dims=width,
            loss_cls=dict(
                type='CrossEntropyLoss',
                use_sigmoid=False,
                class_weight=1.0,
                bg_cls_weight=0.1,
                loss_weight=1.0,
            ),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0),
        ),
        train_cfg=dict(
            assigner=dict(
                type='HungarianAssigner',
                match_costs=[
                    dict(type='ClassificationCost', weight=1.0),
                    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                    dict(type='IoUCost', iou_mode='giou', weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=num_queries),
    )
