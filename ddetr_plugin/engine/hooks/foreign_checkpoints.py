"""`load_from` with weights of other implementations or for other classes."""

import logging
from collections.abc import Mapping, Sequence

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ddetr_plugin.checkpoints import (
    OURS,
    describe,
    detect_dialect,
    dilation_mismatch,
    settings_mismatch,
    to_ours,
    unwrap,
)
from ddetr_plugin.checkpoints.files.stated_settings import our_settings
from ddetr_plugin.datasets.class_names import dataset_classes
from ddetr_plugin.engine import mmengine_private
from ddetr_plugin.engine.sharding import full_state_dict
from ddetr_plugin.registry import HOOKS

__all__ = ['ForeignCheckpointHook', 'convert_checkpoint']


@HOOKS.register_module()
class ForeignCheckpointHook(Hook):
    """Converts what `load_from` names: other implementations' weights, other classes' rows.

    Without it our detector still takes weights of other implementations, but knows no class names:
    of those it maps COCO's 91 official rows to its 80 only. With it, rows move by the names that
    the dataset of the config and the checkpoint give; classes that the checkpoint does not know
    start fresh, and the log says which. So do the rows of our own checkpoints; of files that do
    not say which classes they know, the rows stay where they are. It warns where the file is of a
    dilated backbone and the model is not, or the other way round, or where it says that settings
    which weights do not show are others, see `setting_mismatches`. Resuming changes nothing, and
    only our own checkpoints can be resumed from. Of other models' weights it strips what DDP and
    torch.compile leave before names; those of mmdet 2.x's DETR get the names of mmdet 3.

    Args:
        allow_missing: load what fits of a foreign checkpoint, and log what does not, instead of
            stopping.
    """

    # Before EMAHook (NORMAL) copies the weights.
    priority = 'HIGH'

    def __init__(self, allow_missing: bool = False):
        self.allow_missing = allow_missing

    def after_load_checkpoint(self, runner, checkpoint):
        """Rewrite the weights in `checkpoint` before the model loads them.

        Raises:
            ValueError: weights of another implementation do not fit the model, or are to be
                resumed from.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        source = unwrap(checkpoint)
        dialect = detect_dialect(source.state)
        if dialect is None and source.notes and not mmengine_private.is_resumed(runner):
            checkpoint['state_dict'] = source.state
            print_log(f'The checkpoint: {"; ".join(source.notes)}', logger='current')
        if dialect is None or (mmengine_private.is_resumed(runner) and dialect == OURS):
            return
        target = full_state_dict(runner.model)
        if detect_dialect(target) != OURS:
            return
        if mmengine_private.is_resumed(runner):
            raise ValueError(f'cannot resume from {dialect} weights; use load_from without resume')
        convert_checkpoint(
            checkpoint, model, target, dataset_classes(runner.cfg), self.allow_missing
        )


def convert_checkpoint(
    checkpoint: dict,
    model: nn.Module,
    target: Mapping[str, Tensor],
    classes: Sequence[str] | None,
    allow_missing: bool = False,
) -> None:
    """Rewrite the weights in a checkpoint as a model of ours takes them, and log what was done.

    Args:
        checkpoint: as it was loaded; gets `state_dict`.
        model: ours.
        target: its state dict, of which names and shapes are read.
        classes: that the class rows move to, by name; None if they are not known.
        allow_missing: load what fits of a foreign checkpoint, and log what does not.

    Raises:
        ValueError: weights of another implementation do not fit the model.
    """
    source = unwrap(checkpoint)
    dialect = detect_dialect(source.state)
    converted = to_ours(
        source,
        target=target,
        target_classes=classes,
        allow_missing=allow_missing or dialect == OURS,
        target_refines=our_settings(model).get('with_box_refine'),
    )
    lines = dilation_mismatch(source, converted.dialect, model.get_submodule('backbone'))
    for line in lines + settings_mismatch(source, converted.dialect, model):
        print_log(line, logger='current', level=logging.WARNING)
    if dialect == OURS and converted.rows is None and not source.notes:
        return
    shapes = {name: tensor.shape for name, tensor in target.items()}
    checkpoint['state_dict'] = {
        name: tensor
        for name, tensor in converted.state.items()
        if shapes.get(name, tensor.shape) == tensor.shape
    }
    report = '\n  '.join(describe(converted, source))
    # A model whose classes all start fresh cannot be tested, and hardly anybody means it.
    lost = converted.rows is not None and not any(row is not None for row in converted.rows)
    level = logging.WARNING if lost or converted.warnings else logging.INFO
    print_log(f'Converted the checkpoint:\n  {report}', logger='current', level=level)
