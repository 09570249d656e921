"""Validation data for a data set that has none."""

import random

from ddetr_plugin.data_checks import Split, is_scored

__all__ = ['split_off_validation']


def split_off_validation(train: Split) -> list[Split]:
    """Takes a fifth of the training images, drawn with a fixed seed, for validation.

    Of the images with boxes, and of those without, a fifth each. Nothing is written.

    Returns:
        [train, val].

    Raises:
        ValueError: there are no two images with boxes.
    """
    with_boxes = {a['image_id'] for a in train.content['annotations'] if is_scored(a)}
    if len(with_boxes) < 2:
        raise ValueError(
            f'{train.ann_file} has boxes on one image only, but training and validation need one '
            'each. Annotate more images, or add annotations/instances_val.json'
        )
    ids = {image['id'] for image in train.content['images']}
    held_out = set()
    for part, least in ((with_boxes, 1), (ids - with_boxes, 0)):
        drawn = sorted(part)
        random.Random(0).shuffle(drawn)
        held_out.update(drawn[: max(least, len(drawn) // 5)])
    splits = []
    for name, wanted in (('train', False), ('val', True)):
        content = dict(
            train.content,
            images=[i for i in train.content['images'] if (i['id'] in held_out) == wanted],
            annotations=[
                a for a in train.content['annotations'] if (a['image_id'] in held_out) == wanted
            ],
        )
        splits.append(train._replace(name=name, content=content))
    return splits
