"""A split in COCO's format, built image by image from files of another format."""

from collections.abc import Iterable
from pathlib import Path

from ddetr_plugin.data_checks import Finding

__all__ = ['Builder']


class Builder:
    """Collects images and boxes of one split.

    Attributes:
        file: where the annotations come from, for messages: a file or a folder.
        findings: what could not be read.
    """

    def __init__(self, file: Path):
        self.file = file
        self.findings: list[Finding] = []
        self._images: list[dict] = []
        self._annotations: list[tuple[int, str, dict]] = []

    def __len__(self) -> int:
        return len(self._images)

    def add_image(self, file_name: str, width: int, height: int) -> int:
        """Adds an image of that size in pixels and returns its id."""
        self._images.append(
            dict(id=len(self._images) + 1, file_name=file_name, width=width, height=height)
        )
        return len(self._images)

    def add_box(self, image_id: int, name: str, box: list[float], **more) -> None:
        """Adds [x, y, width, height] in pixels, of the class called `name`; `more` are fields."""
        box = [round(float(value), 4) for value in box]
        fields = dict(bbox=box, area=box[2] * box[3], iscrowd=0)
        self._annotations.append((image_id, name, fields | more))

    def add_polygons(self, image_id: int, name: str, polygons: list[list[float]], **more) -> None:
        """Adds an object with [x, y, x, y, ...] in pixels for every part, and the box around it."""
        polygons = [[round(float(value), 4) for value in polygon] for polygon in polygons]
        xs = [x for polygon in polygons for x in polygon[::2]]
        ys = [y for polygon in polygons for y in polygon[1::2]]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
        # Of a line, pycocotools can make no mask.
        masks = [polygon for polygon in polygons if len(polygon) >= 6]
        if len(masks) == len(polygons):
            more['segmentation'] = masks
        self.add_box(image_id, name, box, **more)

    def refuse(self, file: Path, kind: str, detail: str, remedy: str) -> None:
        """Notes an error of a file."""
        self.findings.append(Finding('error', kind, str(file), None, None, detail, remedy))

    @property
    def names(self) -> set[str]:
        """The classes of the boxes."""
        return {name for _, name, _ in self._annotations}

    def content(self, classes: Iterable[str]) -> dict:
        """The dict of a COCO-format file, with these classes in their order."""
        ids = {name: number for number, name in enumerate(classes, 1)}
        return dict(
            images=self._images,
            categories=[dict(id=number, name=name) for name, number in ids.items()],
            annotations=[
                dict(id=number, image_id=image_id, category_id=ids[name], **fields)
                for number, (image_id, name, fields) in enumerate(self._annotations, 1)
            ],
        )
