"""Resizing as the official release does it, to reproduce its numbers."""

from mmdet.datasets.transforms import Resize

from ddetr_plugin.registry import TRANSFORMS

__all__ = ['OfficialResize', 'official_size']


def official_size(
    width: int, height: int, long_side: int | None, short_side: int
) -> tuple[int, int]:
    """(width, height) in pixels: the short side as wished, the long side rounded down.

    Where the long side would exceed `long_side`, unless that is None, the short side is made
    smaller first, rounded to the nearest pixel.
    """
    short, long = sorted((width, height))
    side = short_side
    if long_side is not None and long / short * side > long_side:
        side = round(long_side * short / long)
    if short == side:
        return width, height
    other = int(side * long / short)
    return (side, other) if width < height else (other, side)


@TRANSFORMS.register_module()
class OfficialResize(Resize):
    """mmdet's Resize with Pillow's antialiased bilinear filter and the official rounding.

    mmdet rounds both sides to the nearest pixel and reads four pixels with OpenCV, however much
    smaller the picture becomes. In training it is the `resize_type` of mmdet's RandomChoiceResize.

    Args:
        scale: (long side, short side) in pixels, in either order: the short side to reach, and what
            the long side must not exceed. One number is the short side alone. RandomChoiceResize
            gives 0, and sets `scale` before each picture.
        clip_object_border: clip boxes to the picture.
        keep_ratio: must be True.

    Raises:
        ValueError: `keep_ratio` is False; or, for a picture, `scale` is not positive.
    """

    def __init__(
        self,
        scale: int | tuple[int, int],
        clip_object_border: bool = True,
        keep_ratio: bool = True,
    ):
        if not keep_ratio:
            raise ValueError('OfficialResize keeps the aspect ratio, got keep_ratio=False')
        # The exact size is computed here, so mmcv must not compute one from the ratio.
        super().__init__(
            scale=(1, 1),
            keep_ratio=False,
            clip_object_border=clip_object_border,
            backend='pillow',
        )
        self.scale = scale

    def transform(self, results: dict) -> dict:
        """Resizes picture, boxes and masks in `results`; see mmdet's Resize.

        Raises:
            ValueError: `scale` is not positive, or of more than two numbers.
        """
        self._sides()
        return super().transform(results)

    def _sides(self) -> tuple[int | None, int]:
        """The long side or None, and the short side."""
        sides = (self.scale,) if isinstance(self.scale, int) else tuple(self.scale)
        if not 1 <= len(sides) <= 2 or min(sides) < 1:
            raise ValueError(
                'scale must be (long side, short side) or the short side, in pixels, got '
                f'{self.scale}'
            )
        return (max(sides) if len(sides) == 2 else None), min(sides)

    def _resize_img(self, results: dict) -> None:
        if results.get('img') is not None:
            height, width = results['img'].shape[:2]
            results['scale'] = official_size(width, height, *self._sides())
        super()._resize_img(results)
