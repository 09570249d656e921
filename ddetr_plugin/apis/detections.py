"""What a detector has found on one image, and the forms in which others take it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pycocotools import mask as mask_utils

from ddetr_plugin.apis.drawing import draw_boxes
from ddetr_plugin.datasets import read_image

__all__ = ['Detections']


@dataclass(frozen=True, eq=False)
class Detections:
    """The n detections on one image, best first, or why there are none.

    Attributes:
        boxes: (n, 4) float32, (x1, y1, x2, y2) in pixels of the original image, upright as EXIF
            says; not clipped to it, see `clipped`.
        scores: (n,) float32, 0..1.
        labels: (n,) int64, indices of `classes`.
        classes: names of all classes of the model.
        size: (height, width) of the original image in pixels; (0, 0) if it could not be read.
        index: place of the image among those that were given, from 0.
        source: path of the image or the video; None for arrays and PIL images.
        frame: number in its video, from 0; None for images.
        queries: (n,) int64, the query that made each; None for models without queries.
        masks: (n, height, width) bool; None for models without masks.
        error: why the image could not be predicted; None if it was.
        image: (height, width, 3) uint8, BGR, to draw on; None unless the detector was asked to keep
            it.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    size: tuple[int, int]
    index: int = 0
    source: str | None = None
    frame: int | None = None
    queries: np.ndarray | None = None
    masks: np.ndarray | None = None
    error: str | None = None
    image: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def nothing(
        cls,
        classes: tuple[str, ...],
        index: int = 0,
        source: str | None = None,
        frame: int | None = None,
    ) -> 'Detections':
        """Those of an image on which nothing was found yet, of size (0, 0)."""
        return cls(
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
            classes=classes,
            size=(0, 0),
            index=index,
            source=source,
            frame=frame,
        )

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes[label] for label in self.labels]

    @property
    def title(self) -> str:
        """What messages call the image: path and frame, or its place."""
        name = f'image {self.index}' if self.source is None else self.source
        return name if self.frame is None else f'{name}, frame {self.frame}'

    def __getitem__(self, chosen) -> 'Detections':
        """Some of the detections: a slice, a mask (n,) bool or indices."""
        if isinstance(chosen, (int, np.integer)):
            chosen = [chosen]
        return replace(
            self,
            boxes=self.boxes[chosen],
            scores=self.scores[chosen],
            labels=self.labels[chosen],
            queries=None if self.queries is None else self.queries[chosen],
            masks=None if self.masks is None else self.masks[chosen],
        )

    def clipped(self) -> 'Detections':
        """The same with boxes that end at the border of the image, those outside left out."""
        height, width = self.size
        boxes = np.clip(self.boxes, 0, np.array([width, height] * 2, np.float32))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return replace(self, boxes=boxes)[inside]

    def to_coco(self, image_id: int = 1, category_ids: Sequence[int] | None = None) -> list[dict]:
        """Detections as COCO's results have them, clipped to the image.

        Args:
            image_id: of the image.
            category_ids: of each class, in the order of `classes`; by default 1, 2, ...

        Returns:
            Dicts of plain Python values with `image_id`, `category_id`, `bbox` (x, y, width, height
            in pixels), `area`, `iscrowd` and `score`; with masks also `segmentation`, compressed
            RLE.
        """
        category_ids = category_ids or range(1, len(self.classes) + 1)
        found = self.clipped()
        rows = []
        for (x1, y1, x2, y2), score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()
        ):
            width, height = x2 - x1, y2 - y1
            rows.append(
                dict(
                    image_id=image_id,
                    category_id=category_ids[label],
                    bbox=[x1, y1, width, height],
                    area=width * height,
                    iscrowd=0,
                    score=score,
                )
            )
        if found.masks is not None:
            for row, mask in zip(rows, found.masks):
                encoded = mask_utils.encode(np.asfortranarray(mask, np.uint8))
                row['area'] = float(mask_utils.area(encoded))
                row['segmentation'] = dict(encoded, counts=encoded['counts'].decode())
        return rows

    def to_supervision(self):
        """Detections as roboflow's supervision takes them, for its annotators and trackers.

        Returns:
            supervision.Detections with the names of classes in `data['class_name']` and, where
            there are any, the queries in `data['query']`.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                f'to_supervision needs the package supervision ({error}); pip install supervision'
            ) from error
        data = {'class_name': np.array(self.names, dtype=str)}
        if self.queries is not None:
            data['query'] = self.queries
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            mask=self.masks,
            data=data,
        )

    def draw(self, image: np.ndarray | None = None, scale: float = 1) -> np.ndarray:
        """The image with the boxes, class names and scores drawn on it.

        Args:
            image: (height, width, 3) uint8, BGR; not changed. By default the one that was kept,
                else `source` is read once more.
            scale: factor by which the drawing is larger than the image.

        Returns:
            (height * scale, width * scale, 3) uint8, BGR.

        Raises:
            ValueError: `image` is of another size or kind; or none was given where the detector
                got an array, a PIL image or a frame and kept none.
        """
        if image is None:
            image = self._read()
        if image.shape != (*self.size, 3) or image.dtype != np.uint8:
            raise ValueError(
                f'{self.title} is drawn on an array {(*self.size, 3)} of uint8, got {image.shape} '
                f'of {image.dtype}'
            )
        found = self.clipped()
        corners = np.hstack((found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]))
        rows = [
            (box, label, f'{name} {score:.2f}')
            for box, label, name, score in zip(
                corners.tolist(), found.labels.tolist(), found.names, found.scores.tolist()
            )
        ]
        return draw_boxes(image, rows, scale)

    def _read(self) -> np.ndarray:
        if self.image is not None:
            return self.image
        if self.source is None or self.frame is not None:
            raise ValueError(
                f'{self.title} was not kept: give draw() the image, or call the detector with '
                'keep_images=True'
            )
        return read_image(self.source)
