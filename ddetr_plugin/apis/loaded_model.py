"""A detector with its weights, and what its classes are called."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

from ddetr_plugin.checkpoints import CheckpointFileError, install_checkpoint_loader
from ddetr_plugin.compat import require_mmcv_operators
from ddetr_plugin.datasets.class_names import dataset_classes
from ddetr_plugin.datasets.wrappers import base_dataset_configs

__all__ = ['category_ids', 'class_names', 'load_model']


def class_names(checkpoint: Mapping, config: Config) -> list[str]:
    """The classes a checkpoint was trained on; from the config where it does not say.

    Raises:
        ValueError: there are none, or another number than the model has.
    """
    meta = checkpoint.get('meta', {}).get('dataset_meta') or {}
    classes = meta.get('classes') or config.get('metainfo', {}).get('classes')
    if classes is None:
        classes = dataset_classes(config)
    # R-CNNs have their box head, or one for each stage, in roi_head.
    head = config.model.get('roi_head', config.model).bbox_head
    count = (head[0] if isinstance(head, list) else head).num_classes
    if classes is None or len(classes) != count:
        raise ValueError(
            f'the model has {count} classes, but checkpoint and config name '
            f'{0 if classes is None else len(classes)}; set metainfo = dict(classes=...) in the '
            'config'
        )
    return [str(name) for name in classes]


def load_model(
    config: Config, checkpoint_file: str | os.PathLike, device: str | torch.device
) -> tuple[torch.nn.Module, list[str]]:
    """The detector of a config with its weights, in evaluation mode, and its classes' names.

    Raises:
        ValueError: weights or classes do not fit the config.
        MissingMMCVOpError: the model needs full mmcv, and this is mmcv-lite.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    model = MODELS.build(config.model)
    require_mmcv_operators(model)
    install_checkpoint_loader()
    try:
        checkpoint = load_checkpoint(model, str(checkpoint_file), map_location='cpu', strict=True)
    except CheckpointFileError:
        raise
    # What torch's unpickler stumbles over depends on the bytes that are no pickle.
    except (UnpicklingError, EOFError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f'{checkpoint_file} is not a checkpoint, or holds more than weights and what the '
            'Runner adds to them; it was not loaded'
        ) from error
    except RuntimeError as error:
        # The list of all weights that do not fit can fill a screen.
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'{checkpoint_file} does not fit the model of the config; give the config that the '
            f'training left in its work folder: {reason[:300]}'
        ) from error
    return model.to(device).eval(), class_names(checkpoint, config)


def category_ids(config: Config, classes: Sequence[str]) -> list[int]:
    """The category id of each class: of the config's test or training annotations, else 1, 2, ...

    Args:
        config: its data sets may name annotation files in COCO format; others, such as lists of
            Pascal VOC, and files that are not there are passed over.
        classes: names, in the order of the model.
    """
    for split in ('test', 'val', 'train'):
        loader = config.get(f'{split}_dataloader') or {}
        for dataset in base_dataset_configs(loader.get('dataset')):
            ids = _ids_by_name(Path(dataset.get('data_root') or '', dataset.get('ann_file') or ''))
            if set(classes) <= set(ids):
                return [ids[name] for name in classes]
    return list(range(1, len(classes) + 1))


def _ids_by_name(ann_file: Path) -> dict[str, int]:
    """The ids of a COCO file's categories; nothing of a file that is none."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        content = json.loads(ann_file.read_bytes())
        return {str(category['name']): category['id'] for category in content['categories']}
    return {}
