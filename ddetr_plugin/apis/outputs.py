"""Files of detections: COCO JSON, YOLO txt and CSV, written image by image."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from ddetr_plugin.apis.detections import Detections

__all__ = ['FORMATS', 'CocoOutput', 'CsvOutput', 'Output', 'YoloOutput', 'open_outputs']


class Output(Protocol):
    """Where detections are written to."""

    def add(self, name: str, found: Detections) -> None:
        """Add those of an image, which files call `name`, a path with slashes."""

    def close(self) -> None:
        """Write what has not been written yet."""


class CocoOutput:
    """predictions.json: an annotation file in COCO format, whose annotations have a `score`.

    Frames of a video are images with `video_id` and `frame_id`, from 0, of an entry of `videos`.

    Args:
        folder: that gets the file.
        classes: names, in the order of labels.
        category_ids: of each.
    """

    def __init__(self, folder: Path, classes: Sequence[str], category_ids: Sequence[int]):
        self.path = folder / 'predictions.json'
        self._category_ids = list(category_ids)
        categories = [dict(id=i, name=name) for i, name in zip(category_ids, classes)]
        self._content: dict[str, list] = dict(images=[], categories=categories, annotations=[])
        self._videos: dict[str, int] = {}

    def add(self, name: str, found: Detections) -> None:
        images, annotations = self._content['images'], self._content['annotations']
        height, width = found.size
        image_id = len(images) + 1
        image = dict(id=image_id, file_name=name, width=width, height=height)
        if found.frame is not None:
            video = self._videos.setdefault(str(found.source), len(self._videos) + 1)
            image.update(video_id=video, frame_id=found.frame)
        images.append(image)
        for row in found.to_coco(image_id, self._category_ids):
            annotations.append(dict(id=len(annotations) + 1, **row))

    def close(self) -> None:
        if self._videos:
            self._content['videos'] = [
                dict(id=number, name=Path(path).name) for path, number in self._videos.items()
            ]
        self.path.write_text(json.dumps(self._content, indent=1) + '\n')


class YoloOutput:
    """labels/: a text file for each image, a line for each detection, and classes.txt.

    A line is `label x y width height score`: the centre and the size of the box as shares of the
    image's sides, as Ultralytics writes them with save_conf.
    """

    def __init__(self, folder: Path, classes: Sequence[str], category_ids: Sequence[int]):
        self.folder = folder / 'labels'
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / 'classes.txt').write_text(''.join(f'{name}\n' for name in classes))
        self._taken: set[Path] = set()

    def add(self, name: str, found: Detections) -> None:
        height, width = found.size
        found = found.clipped()
        lines = []
        for (x1, y1, x2, y2), label, score in zip(
            found.boxes.tolist(), found.labels.tolist(), found.scores.tolist()
        ):
            centre = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
            shares = *centre, (x2 - x1) / width, (y2 - y1) / height
            lines.append(f'{label} {" ".join(f"{share:.6f}" for share in shares)} {score:.6f}\n')
        path = self.folder / Path(name).with_suffix('.txt')
        if path in self._taken:  # of a.jpg and a.png, the second one
            path = self.folder / f'{name}.txt'
        self._taken.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(''.join(lines))

    def close(self) -> None:
        """Nothing is left to write."""


class CsvOutput:
    """predictions.csv: a line for each detection, corners in pixels of the original image."""

    HEADER = ('image', 'frame', 'class', 'score', 'x1', 'y1', 'x2', 'y2')

    def __init__(self, folder: Path, classes: Sequence[str], category_ids: Sequence[int]):
        self.path = folder / 'predictions.csv'
        self._rows: list[Sequence] = [self.HEADER]

    def add(self, name: str, found: Detections) -> None:
        found = found.clipped()
        frame = '' if found.frame is None else found.frame
        for box, label, score in zip(found.boxes.tolist(), found.names, found.scores.tolist()):
            corners = [f'{value:.2f}' for value in box]
            self._rows.append((name, frame, label, f'{score:.6f}', *corners))

    def close(self) -> None:
        with open(self.path, 'w', newline='', encoding='utf-8') as file:
            csv.writer(file).writerows(self._rows)


FORMATS: dict[str, Callable[[Path, Sequence[str], Sequence[int]], Output]] = dict(
    coco=CocoOutput, yolo=YoloOutput, csv=CsvOutput
)


def open_outputs(
    formats: Sequence[str], folder: Path, classes: Sequence[str], category_ids: Sequence[int]
) -> list[Output]:
    """An `Output` for each of `formats`, keys of `FORMATS`; other arguments as `CocoOutput`.

    Raises:
        ValueError: a format is another one.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise ValueError(f'detections are written as {", ".join(FORMATS)}, not {unknown[0]}')
    return [FORMATS[name](folder, classes, category_ids) for name in dict.fromkeys(formats)]
