"""A batch of a data loader, written for people and for programs."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.structures.bbox import get_box_tensor

__all__ = ['save_batch']


def save_batch(folder: Path, data: dict, report: str, **more) -> None:
    """Write a batch of a data loader for people and for programs.

    ``batch.pth`` loads with ``weights_only=True``; ``picture_<i>.png`` shows each picture as the
    network got it, with its boxes; ``report.txt`` says what happened, and names the files.

    Args:
        folder: is made.
        data: `inputs`, B tensors (3, h, w), and `data_samples`.
        report: text.
        **more: what else goes into ``batch.pth``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for i, (picture, sample) in enumerate(zip(data['inputs'], data['data_samples'])):
        boxes = get_box_tensor(sample.gt_instances.bboxes).cpu()
        pictures.append(
            dict(
                inputs=picture.cpu(),
                bboxes=boxes,
                labels=sample.gt_instances.labels.cpu(),
                metainfo={k: _plain(v) for k, v in sample.metainfo.items()},
            )
        )
        shown = picture.float().nan_to_num(0, 255, 0).clamp(0, 255).byte().cpu()
        shown = np.ascontiguousarray(shown.permute(1, 2, 0).numpy())
        for box in boxes[boxes.isfinite().all(-1)].round().int().tolist():
            cv2.rectangle(shown, box[:2], box[2:], (0, 255, 0))
        cv2.imwrite(str(folder / f'picture_{i}.png'), shown)
    (folder / 'report.txt').write_text(report + '\n')
    torch.save(dict(report=report, pictures=pictures, **more), folder / 'batch.pth')


def _plain(value):
    """A value of meta information that any process may load."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, int | float | str | None) else str(value)
