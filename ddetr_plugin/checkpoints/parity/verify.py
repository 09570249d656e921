"""Whether the source's own library computes what our model computes with the converted weights."""

import copy
import logging
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddetr_plugin.checkpoints.files.reading import Source
from ddetr_plugin.checkpoints.names.table import module_names, translate, with_common_names
from ddetr_plugin.checkpoints.parity.first_difference import first_difference
from ddetr_plugin.checkpoints.parity.other_models import (
    mmdet_model,
    predictions,
    transformers_model,
    with_rows,
)
from ddetr_plugin.checkpoints.parity.source_models import source_model
from ddetr_plugin.checkpoints.record import Conversion

__all__ = ['TOLERANCE', 'Verification', 'build_ours', 'verify']

# Of logits relative to the largest one, if that is above 1; of normalised boxes as they are.
# Rounding in float32 made 7e-6 on models of full size and 2.4e-5 on small ones with large weights;
# wrong settings make 1e-2 and more.
TOLERANCE = 1e-3


class Verification(NamedTuple):
    """How two models differ on a padded batch of two random images.

    Attributes:
        logits: the largest absolute difference of the logits.
        boxes: that of the boxes, (cx, cy, w, h) normalised.
        passed: both are within `TOLERANCE`.
        by_config: the other model was built from the config that the file brings; else from ours,
            and the two share whatever is wrong with it.
        where: image, query and class or coordinate of the larger excess, and the first module that
            computes something else; empty if it passed.
        by_rounding: it did not pass, and our model by itself changes as much where it computes in
            float64: the comparison says nothing about these weights.
    """

    logits: float
    boxes: float
    passed: bool
    by_config: bool
    where: str
    by_rounding: bool = False


def build_ours(config: Mapping, device: str = 'cpu') -> nn.Module:
    """Our model of a config, without loading what its backbone is usually initialised from.

    On 'meta' it has names and shapes, but takes no memory, unless a part cannot be built there.
    """
    from mmengine.registry import DefaultScope

    from ddetr_plugin.registry import MODELS

    logging.disable(logging.INFO)
    try:
        with DefaultScope.overwrite_default_scope('mmdet'):
            try:
                with torch.device(device):
                    model = MODELS.build(copy.deepcopy(config))
            except RuntimeError:
                # mmdet's EfficientNet reads numbers from tensors while it is built.
                if device != 'meta':
                    raise
                return MODELS.build(copy.deepcopy(config))
            if device == 'meta' and config.get('data_preprocessor'):
                # Its mean and deviation are settings, and are in no file of weights.
                model.data_preprocessor = MODELS.build(copy.deepcopy(config['data_preprocessor']))
            return model
    finally:
        logging.disable(logging.NOTSET)


def verify(config: Mapping, source: Source, conversion: Conversion) -> Verification | None:
    """Compares our model of a config, with the converted weights, with the source's own.

    Classes that start fresh are not compared, nor is the order of a two-stage model's proposals.

    Args:
        config: our model's config, with the class rows of `conversion`.
        source: the file.
        conversion: its weights as ours.

    Returns:
        None if there is no library of the source's kind.

    Raises:
        ImportError: the source's library is not installed.
        ValueError: the library has no such model, the file's own config is of another model than
            the weights, or the two models do not predict equally many boxes.
    """
    if conversion.dialect not in ('mmdet', 'transformers'):
        return None
    other = source_model(source.state, source.meta, conversion.dialect)
    by_config = other is not None
    if other is None:
        other = _as_ours(config, source, conversion.dialect)
    ours = build_ours(config)
    ours.load_state_dict(conversion.state)

    (logits, boxes), (other_logits, other_boxes) = predictions(ours, other, conversion.rows)
    if logits.shape != other_logits.shape or boxes.shape != other_boxes.shape:
        raise ValueError(
            f'the models predict logits {tuple(logits.shape)} with --config and '
            f'{tuple(other_logits.shape)} by the file, expected as many; set num_queries'
        )
    two_stage = conversion.architecture.two_stage
    other_logits, other_boxes = _ordered(logits, boxes, other_logits, other_boxes, two_stage)
    differences = (logits - other_logits).abs(), (boxes - other_boxes).abs()
    of_logits, of_boxes = (difference.max().item() for difference in differences)
    excess = _excess(of_logits, of_boxes, other_logits)
    # So written, numbers that are not finite fail.
    if all(number <= TOLERANCE for number in excess):
        return Verification(of_logits, of_boxes, True, by_config, '')
    in_logits = not excess[0] <= excess[1]
    pair = (logits, other_logits) if in_logits else (boxes, other_boxes)
    where = _place(differences[not in_logits], *pair, in_logits)
    module = first_difference(
        ours, other, _counterparts(conversion, other), lambda: predictions(ours, other)
    )
    if module is not None:
        where += f'; the first module with another result is {module}'
    finite = all(map(math.isfinite, excess))
    by_rounding = finite and _rounding(ours, two_stage) > 0.1 * max(excess)
    return Verification(of_logits, of_boxes, False, by_config, where, by_rounding)


def _excess(logits: float, boxes: float, of: Tensor) -> tuple[float, float]:
    """Largest differences of the logits `of` a model and of its boxes, as `TOLERANCE` counts."""
    return logits / max(1.0, of.abs().max().item()), boxes


def _rounding(model: nn.Module, two_stage: bool) -> float:
    """How far a model's predictions in float32 are from those in float64, as `TOLERANCE` counts."""
    try:
        one, other = predictions(model, copy.deepcopy(model).double())
    except RuntimeError:
        # A part of somebody's own that computes in float32 only.
        return 0.0
    wanted = _ordered(*one, *other, two_stage)
    logits, boxes = ((a - b).abs().max().item() for a, b in zip(one, wanted))
    return max(_excess(logits, boxes, wanted[0]))


def _as_ours(config: Mapping, source: Source, dialect: str) -> nn.Module:
    """The library's model with the settings of our config."""
    state = with_common_names(source.state, dialect)
    heads = 'bbox_head.cls_branches' if dialect == 'mmdet' else 'class_embed'
    # transformers may save a head under the name that the decoder has for it, and only there.
    bias = next(t for name, t in state.items() if name.endswith(f'{heads}.0.bias'))
    theirs = with_rows(config, len(bias))
    if dialect == 'transformers':
        return transformers_model(theirs, state)
    theirs['neck']['bias'] = 'neck.convs.0.conv.bias' in state
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmdet'):
        other = mmdet_model(theirs)
    other.load_state_dict(state)
    return other


def _ordered(
    logits: Tensor, boxes: Tensor, other_logits: Tensor, other_boxes: Tensor, two_stage: bool
) -> tuple[Tensor, Tensor]:
    """The other model's predictions, each at the query where the sum of the differences is least.

    Proposals whose scores are nearly the same may come in another order, which means nothing. The
    queries of other models than two-stage ones have an order.
    """
    if not two_stage:
        return other_logits, other_boxes
    from scipy.optimize import linear_sum_assignment

    one, other = torch.cat((logits, boxes), -1), torch.cat((other_logits, other_boxes), -1)
    cost = torch.cdist(one.double(), other.double(), p=1).nan_to_num(1e9)
    columns = [linear_sum_assignment(image.numpy())[1] for image in cost]
    order = torch.stack([torch.from_numpy(column) for column in columns])[..., None]
    return other_logits.take_along_dim(order, 1), other_boxes.take_along_dim(order, 1)


def _place(difference: Tensor, one: Tensor, other: Tensor, of_logits: bool) -> str:
    index = difference.nan_to_num(torch.inf, torch.inf).argmax().item()
    image, query, last = (int(i) for i in torch.unravel_index(torch.tensor(index), one.shape))
    what = f'class row {last}' if of_logits else f'{("cx", "cy", "w", "h")[last]} of the box'
    numbers = f'{one[image, query, last]:.6g} here, {other[image, query, last]:.6g} there'
    return f'image {image}, query {query}, {what}: {numbers}'


def _counterparts(conversion: Conversion, other: nn.Module) -> dict[str, str]:
    """Names of our modules to those of the other library's model."""
    ours = module_names(conversion.dialect, conversion.architecture).ours()
    leaves = [name for name, module in other.named_modules() if not any(module.children())]
    # The table has names as older releases write them into files.
    common = with_common_names(
        {f'{name}.weight': torch.tensor(i) for i, name in enumerate(leaves)}, conversion.dialect
    )
    pairs = {}
    for name, index in common.items():
        our = translate(name, ours)
        if our is not None:
            pairs[our.removesuffix('.weight')] = leaves[int(index)]
    return pairs
