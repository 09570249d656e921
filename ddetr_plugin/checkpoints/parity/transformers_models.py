"""transformers' Deformable DETR of a config of its own, and the configs of its backbones."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ddetr_plugin.checkpoints.names.resnets import RESNETS
from ddetr_plugin.checkpoints.names.table import with_transformers_resnet

__all__ = ['own_resnet', 'timm_resnet', 'transformers_with']


def transformers_with(config: Any, state: Mapping[str, Tensor]) -> nn.Module:
    """transformers' model of one of its configs, with weights that transformers itself loads.

    Args:
        config: a DeformableDetrConfig.
        state: by transformers' names, those of timm in the backbone; see `with_common_names`.

    Raises:
        ValueError: weights are missing.
    """
    from transformers import DeformableDetrForObjectDetection

    if config.backbone_config.model_type == 'resnet':
        state = with_transformers_resnet(state)
    model, report = DeformableDetrForObjectDetection.from_pretrained(
        None,
        config=config,
        state_dict={name: tensor.clone() for name, tensor in state.items()},
        output_loading_info=True,
    )
    # Which it would leave random.
    if report['missing_keys']:
        raise ValueError(f'transformers misses {", ".join(sorted(report["missing_keys"])[:8])}')
    return model


def own_resnet(depth: int, stages: Sequence[int], base: int = 64) -> Any:
    """The config of transformers' own ResNet.

    Args:
        depth: one of `RESNETS`.
        stages: those whose maps come out, counted from 1.
        base: channels after the stem.
    """
    from transformers import ResNetConfig

    depths, bottleneck = RESNETS[depth]
    return ResNetConfig(
        embedding_size=base,
        hidden_sizes=[base * 2**s * (4 if bottleneck else 1) for s in range(4)],
        depths=list(depths),
        layer_type='bottleneck' if bottleneck else 'basic',
        out_features=[f'stage{s}' for s in stages],
    )


def timm_resnet(name: str, stages: Sequence[int]) -> Any:
    """The config of a ResNet of timm whose last stage is dilated.

    Args:
        name: timm's, such as 'resnet50'.
        stages: those whose maps come out, counted from 1.

    Raises:
        ImportError: timm is not installed.
    """
    from transformers import TimmBackboneConfig

    try:
        import timm  # noqa: F401  transformers says less plainly that it is missing
    except ImportError as error:
        raise ImportError(
            f'dilated backbones of transformers are those of timm: {error}'
        ) from error
    return TimmBackboneConfig(
        backbone=name,
        use_pretrained_backbone=False,
        out_indices=list(stages),
        output_stride=16,
    )
