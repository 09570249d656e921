"""Refuses predictions that are not finite, wherever they are scored, drawn or read from a file."""

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from mmengine.structures import InstanceData

from ddetr_plugin.models.losses.assigner import NotFiniteError

__all__ = ['name_image', 'read_detections', 'require_finite']

# pycocotools takes a detection whose box is NaN for a hit: no comparison with its IoU says no.
FIELDS = {'bboxes': 'box', 'scores': 'score', 'mask_scores': 'mask score'}
REMEDY = (
    'The weights hold NaN or infinity, or 16 bits overflow: take an earlier checkpoint, or float32'
)


def require_finite(predictions: Mapping | InstanceData, image: str) -> None:
    """Check that a model's predictions on one image are numbers.

    Args:
        predictions: `bboxes` (n, 4), `scores` (n,), `mask_scores` (n,) and `queries` (n,), each if
            there is any; tensors or arrays.
        image: what the message calls the image, such as its path.

    Raises:
        NotFiniteError: a box or a score is NaN or infinite; the message names image and query (the
            place among the detections if there are no `queries`).
    """
    for field, word in FIELDS.items():
        values = predictions.get(field)
        if values is None:
            continue
        # mmdet's boxes are classes around a tensor.
        values = torch.as_tensor(getattr(values, 'tensor', values))
        bad = ~values[:, None].flatten(1).isfinite().all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            queries = predictions.get('queries')
            owner = f'detection {first}' if queries is None else f'query {int(queries[first])}'
            raise NotFiniteError(
                f'the {word} of {owner} on image {image} is {values[first].tolist()}, not finite '
                f'({int(bad.sum())} of {len(bad)} detections). {REMEDY}'
            )


def name_image(data_sample: Mapping) -> str:
    """What messages call the image of a data sample: its id, and its path if known."""
    path = data_sample.get('img_path')
    return f'{data_sample["img_id"]}' + (f' ({path})' if path else '')


def read_detections(file: str | PathLike) -> list[dict]:
    """Read detections in COCO format from a JSON file.

    Args:
        file: a list of results, as COCO's servers take it and `outfile_prefix` of the metrics
            writes it, or an object whose `annotations` are such, as tools/predict.py writes it.

    Returns:
        Entries with `image_id`, `category_id`, `score` and `bbox`, (x, y, width, height) in pixels.

    Raises:
        OSError: there is no such file.
        ValueError: it holds something else.
        NotFiniteError: a box or a score is NaN or infinite (Python's JSON writes and reads both).
    """
    content = json.loads(Path(file).read_text(encoding='utf-8'))
    entries = content.get('annotations') if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise ValueError(f'{file} holds no list of detections, nor an object with "annotations"')
    for index, entry in enumerate(entries):
        try:
            numbers = [*entry['bbox'], entry['score']]
            image, whole = entry['image_id'], all(map(math.isfinite, numbers))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f'entry {index} of {file} is no detection with image_id, bbox and score: {entry}'
            ) from error
        if not whole:
            raise NotFiniteError(
                f'entry {index} of {file}, on image {image}, is not finite: bbox {entry["bbox"]}, '
                f'score {entry["score"]}. {REMEDY}'
            )
    return entries
