"""The components, registered on import in `ddetr_plugin.registry`."""

from ddetr_plugin.checkpoints import install_checkpoint_loader
from ddetr_plugin.models.backbones import DilatedResNet, EfficientNetLite0, VisionTransformer
from ddetr_plugin.models.detector import DeformableDETR
from ddetr_plugin.models.detr.focal_detr_head import FocalDETRHead
from ddetr_plugin.models.detr.mask_detr import MaskDETR, MaskDETRHead
from ddetr_plugin.models.feature_levels import FeatureLevels
from ddetr_plugin.models.heads.bbox_head import DeformableDETRHead
from ddetr_plugin.models.heads.mask_head import MaskHead
from ddetr_plugin.models.heads.panoptic_mask_head import (
    PanopticMaskHead,
    merge_segments,
    panoptic_map,
)
from ddetr_plugin.models.heads.query_head import (
    ContentTwoStageHead,
    InitialQueries,
    LearnedQueryHead,
    TwoStageHead,
)
from ddetr_plugin.models.layers.attention import MSDeformAttn, MultiheadSelfAttention
from ddetr_plugin.models.layers.decoder import (
    DeformableTransformerDecoder,
    DeformableTransformerDecoderLayer,
)
from ddetr_plugin.models.layers.encoder import (
    DeformableTransformerEncoder,
    DeformableTransformerEncoderLayer,
)
from ddetr_plugin.models.layers.feed_forward import FeedForward
from ddetr_plugin.models.layers.positional_encoding import SinePositionalEncoding
from ddetr_plugin.models.layers.same_level_attention import SameLevelDeformAttn
from ddetr_plugin.models.losses.assigner import HungarianAssigner
from ddetr_plugin.models.losses.criterion import IoUAwareSetCriterion, SetCriterion
from ddetr_plugin.models.losses.match_costs import FocalCost, GIoUCost, L1Cost
from ddetr_plugin.models.losses.targets import Targets
from ddetr_plugin.models.necks.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = [
    'ContentTwoStageHead',
    'DeformableDETR',
    'DeformableDETRHead',
    'DeformableTransformerDecoder',
    'DeformableTransformerDecoderLayer',
    'DeformableTransformerEncoder',
    'DeformableTransformerEncoderLayer',
    'DilatedResNet',
    'EfficientNetLite0',
    'FeatureLevels',
    'FeedForward',
    'FocalCost',
    'FocalDETRHead',
    'GIoUCost',
    'HungarianAssigner',
    'IoUAwareSetCriterion',
    'InitialQueries',
    'L1Cost',
    'LearnedQueryHead',
    'MSDeformAttn',
    'MaskDETR',
    'MaskDETRHead',
    'MaskHead',
    'MultiheadSelfAttention',
    'PanopticMaskHead',
    'SameLevelDeformAttn',
    'SetCriterion',
    'SimpleFeaturePyramid',
    'SinePositionalEncoding',
    'Targets',
    'TwoStageHead',
    'VisionTransformer',
    'merge_segments',
    'panoptic_map',
]

# Whoever builds a Runner or a detector here has imported this: `load_from` takes official files,
# safetensors and folders then, also for models that have nothing of ours.
install_checkpoint_loader()
