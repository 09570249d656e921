"""Panoptic annotations as a detector with masks learns them: every segment is an instance."""

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.structures.mask import BitmapMasks
from mmengine.fileio import get

from ddetr_plugin.datasets.image_files import UnreadableImageError, decode_image
from ddetr_plugin.registry import TRANSFORMS

__all__ = ['LoadPanopticInstances', 'decode_segment_ids']

# A pixel's segment is R + 256 G + 65536 B; mmcv decodes to B, G, R.
ID_OF_BGR = (65536, 256, 1)


def decode_segment_ids(content: bytes) -> np.ndarray | None:
    """Each pixel's segment, (H, W) int32, of the bytes of a PNG; None if it cannot be decoded."""
    try:
        bgr = decode_image(content)
    except UnreadableImageError:
        return None
    blue, green, red = (bgr[..., i].astype(np.int32) * n for i, n in enumerate(ID_OF_BGR))
    return blue + green + red


@TRANSFORMS.register_module()
class LoadPanopticInstances(BaseTransform):
    """Loads things and stuff alike as boxes, labels and masks (arXiv:2005.12872, 4.4).

    mmdet's LoadPanopticAnnotations makes instances of things alone, whose boxes are those of the
    annotation file, and leaves stuff in a semantic map. Here a stuff class of a picture is one
    instance more, and every box is that of its mask: (left, top, right + 1, bottom + 1) in pixels,
    the edges of the outermost ones. Crowds, which PQ does not count, are loaded as ignored
    (`PackDetInputs` keeps them in `ignored_instances`), and so are segments without a pixel; the
    official release trains on crowds as on one large thing.

    Required keys: `ori_shape`, `segments_info` and `seg_map_path`, as CocoPanopticDataset gives
    them; without a `seg_map_path`, as for pictures without ground truth, nothing is loaded.
    Adds `gt_bboxes` (n, 4) float32, `gt_bboxes_labels` (n,) int64, `gt_masks` (n, H, W) and
    `gt_ignore_flags` (n,) bool, in the order of `segments_info`.

    Args:
        num_things: classes below it are things, the others stuff; see `PanopticMaskHead`. mmdet
            numbers classes in the order of the annotation file, where things must come first.
        backend_args: of mmengine's file client; None reads from a local disk.

    Raises:
        ValueError: `num_things` is negative; on use: a thing's class is not below it, the map of
            segments cannot be decoded, or is not of the picture's size.
    """

    def __init__(self, num_things: int, backend_args: dict | None = None):
        if num_things < 0:
            raise ValueError(f'num_things must be 0 or more, got {num_things}')
        self.num_things = num_things
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        """The results with boxes, labels, masks and flags of all segments."""
        path = results.get('seg_map_path')
        if path is None:
            return results
        segments = results['segments_info']
        labels = np.array([s['category'] for s in segments], dtype=np.int64)
        is_thing = np.array([s['is_thing'] for s in segments], dtype=bool)
        self._check_labels(path, labels[is_thing])
        height, width = results['ori_shape'][:2]
        ids = self._segment_ids(path, (height, width))
        wanted = np.array([s['id'] for s in segments], dtype=np.int32)
        bitmaps = (ids == wanted[:, None, None]).view(np.uint8)  # (n, H, W)
        masks = BitmapMasks(bitmaps, height, width)
        # mmdet calls crowds no things; stuff cannot be a crowd.
        is_crowd = ~is_thing & (labels < self.num_things)
        results['gt_bboxes'] = masks.get_bboxes(dst_type='hbox')
        results['gt_bboxes_labels'] = labels
        results['gt_masks'] = masks
        results['gt_ignore_flags'] = is_crowd | ~bitmaps.any((1, 2))
        return results

    def _check_labels(self, path: str, things: np.ndarray) -> None:
        if (things >= self.num_things).any():
            raise ValueError(
                f'{path}: a thing has class {things.max()}, but with num_things={self.num_things} '
                f'classes from {self.num_things} on are stuff; set num_things to the number of '
                'thing classes, and list things before stuff in the categories of the annotation '
                'file'
            )

    def _segment_ids(self, path: str, size: tuple[int, int]) -> np.ndarray:
        """(H, W) int32."""
        ids = decode_segment_ids(get(path, backend_args=self.backend_args))
        if ids is None:
            raise ValueError(f'{path} cannot be decoded; it should be a PNG of segment ids')
        if ids.shape != size:
            raise ValueError(
                f'{path} is {ids.shape[0]} x {ids.shape[1]} pixels (height x width), its picture '
                f'{size[0]} x {size[1]}; both must be of one size'
            )
        return ids
