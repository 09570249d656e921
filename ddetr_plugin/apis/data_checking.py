"""Check a data set before training on it."""

import os
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from ddetr_plugin.apis.config_reading import load_config
from ddetr_plugin.data_checks import (
    Finding,
    check_class_names,
    check_config,
    config_scales,
    has_checked_data,
    has_errors,
)
from ddetr_plugin.datasets.class_names import dataset_classes
from ddetr_plugin.intake import DataFolder
from ddetr_plugin.intake.checks import SCALES, check_model, read_data
from ddetr_plugin.intake.checks import check_data as check_folder_data

__all__ = ['DataReport', 'check_data']


class DataReport(NamedTuple):
    """What was found.

    Attributes:
        findings: all of them; see `describe_findings`.
        data: what was read of a folder; None where the data is what a config names.
        checked: whether there was anything to look into: a config may name other formats alone.
    """

    findings: list[Finding]
    data: DataFolder | None
    checked: bool

    @property
    def usable(self) -> bool:
        """Whether nothing stands in the way of a training, warnings or not."""
        return self.checked and not has_errors(self.findings)


def check_data(
    folder: str | os.PathLike | None = None,
    config: str | os.PathLike | Config | None = None,
    boxes: str = 'pixels',
    keep_super_classes: bool = False,
    write: str | os.PathLike | None = None,
) -> DataReport:
    """Check a data set before training on it; every image is decoded.

    Args:
        folder: as annotation tools export it (COCO's JSON under any name, YOLO, Pascal VOC or
            LabelMe), or one annotation file in COCO format. None for the data that `config` names,
            boxes or panoptic segments.
        config: path, name or Config of the model that is to be trained on it: its class names,
            sizes of images and number of queries are compared, too.
        boxes: what the numbers of boxes are, see `read_data`.
        keep_super_classes: see `read_folder`.
        write: gets the data in COCO format; `folder` stays as it is.

    Raises:
        OSError, ValueError: there is no data set, or no config; or neither was named.
    """
    if folder is None and config is None:
        raise ValueError('name a folder, a config, or both')
    if folder is None and write is not None:
        raise ValueError('there is nothing to write without a folder to read')
    loaded = load_config(config) if config is not None else Config()
    if folder is None:
        return DataReport(check_config(loaded, decode=True), None, has_checked_data(loaded))
    data = read_data(folder, keep_super_classes, boxes)
    if write is not None:
        data = data.place(Path(write))
        data.write(Path(write))
    findings = check_folder_data(data, config_scales(loaded) or SCALES)
    classes = dataset_classes(loaded)
    for split in (data.train, data.val):
        if split is not None and classes is not None:
            findings += check_class_names(split, classes)
    findings += check_model(loaded.get('model') or {}, data.train, data.val)
    return DataReport(findings, data, True)
