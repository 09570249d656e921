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
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, load_state_dict

from ddetr_plugin.checkpoints import (
    OURS,
    CheckpointFileError,
    detect_dialect,
    unwrap,
)
from ddetr_plugin.compat import require_mmcv_operators
from ddetr_plugin.datasets.class_names import dataset_classes
from ddetr_plugin.datasets.wrappers import base_dataset_configs
from ddetr_plugin.engine.hooks.foreign_checkpoints import convert_checkpoint

__all__ = ['category_ids', 'class_names', 'find_device', 'load_model']


def find_device(device: str | torch.device | None = None) -> torch.device:
    """A device that can be used; by default the GPU if there is one, else the CPU.

    Raises:
        ValueError: it cannot be used.
    """
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'the device {device} cannot be used: {reason}') from error


def class_names(checkpoint: Mapping, config: Config) -> list[str]:
    """The classes a checkpoint was trained on; from the config where it does not say.

    Raises:
        ValueError: there are none, or another number than the model has.
    """
    meta = checkpoint.get('meta', {}).get('dataset_meta') or {}
    classes = meta.get('classes') or config.get('metainfo', {}).get('classes')
    return _checked(dataset_classes(config) if classes is None else classes, config)


def _checked(classes: Sequence[str] | None, config: Config) -> list[str]:
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

    Weights of other implementations are converted as `ForeignCheckpointHook` converts them: class
    rows move to the classes of the config's data set, by name.

    Raises:
        ValueError: weights or classes do not fit the config.
        MissingMMCVOpError: the model needs full mmcv, and this is mmcv-lite.
    """
    with DefaultScope.overwrite_default_scope(config.get('default_scope') or 'mmdet'):
        model = MODELS.build(config.model)
    require_mmcv_operators(model)
    try:
        checkpoint = CheckpointLoader.load_checkpoint(str(checkpoint_file), map_location='cpu')
        moved = _convert(checkpoint, model, config)
        load_state_dict(model, checkpoint.get('state_dict', checkpoint), strict=True)
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
    names = class_names(checkpoint, config) if moved is None else _checked(moved, config)
    return model.to(device).eval(), names


def _convert(checkpoint: dict, model: torch.nn.Module, config: Config) -> tuple[str, ...] | None:
    """Rewrites the weights where they are not named as the model's.

    Returns:
        The classes that the rows are of now, if they were moved to those of the config.

    Raises:
        RuntimeError: weights of another implementation do not fit.
    """
    source = unwrap(checkpoint)
    dialect = detect_dialect(source.state)
    target = model.state_dict()
    if dialect in (None, OURS) or detect_dialect(target) != OURS:
        if source.notes:
            checkpoint['state_dict'] = source.state
        return None
    classes = dataset_classes(config)
    try:
        convert_checkpoint(checkpoint, model, target, classes)
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    return classes


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
