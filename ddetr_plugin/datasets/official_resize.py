"""Resizing as the official release does it, to reproduce its numbers."""

from mmdet.datasets.transforms import Resize

from ddetr_plugin.registry import TRANSFORMS

__all__ = ['OfficialResize', 'official_size']


def official_size(width: int, height: int, long_side: int, short_side: int) -> tuple[int, int]:
    """(width, height) in pixels: the short side as wished, the long side rounded down.

    Where the long side would exceed `long_side`, the short side is made smaller first, rounded to
    the nearest pixel.
    """
    short, long = sorted((width, height))
    side = short_side
    if long / short * side > long_side:
        side = round(long_side * short / long)
    if short == side:
        return width, height
    other = int(side * long / short)
    return (side, other) if width < height else (other, side)


@TRANSFORMS.register_module()
class OfficialResize(Resize):
    """mmdet's Resize with Pillow's antialiased bilinear filter and the official rounding.

    mmdet rounds both sides to the nearest pixel and reads four pixels with OpenCV, however much
    smaller the picture becomes.

    Args:
        scale: (long side, short side) in pixels.
        clip_object_border: clip boxes to the picture.
        keep_ratio: must be True.

    Raises:
        ValueError: `keep_ratio` is False.
    """

    def __init__(
        self, scale: tuple[int, int], clip_object_border: bool = True, keep_ratio: bool = True
    ):
        if not keep_ratio:
            raise ValueError('OfficialResize keeps the aspect ratio, got keep_ratio=False')
        # The exact size is computed here, so mmcv must not compute one from the ratio.
        super().__init__(
            scale=tuple(scale),
            keep_ratio=False,
            clip_object_border=clip_object_border,
            backend='pillow',
        )

    def _resize_img(self, results: dict) -> None:
        if results.get('img') is not None:
            height, width = results['img'].shape[:2]
            long_side, short_side = max(self.scale), min(self.scale)
            results['scale'] = official_size(width, height, long_side, short_side)
        super()._resize_img(results)
