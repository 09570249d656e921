"""COCO with every box that the official release trains on."""

from mmdet.datasets import CocoDataset

from ddetr_plugin.registry import DATASETS

__all__ = ['OfficialCocoDataset']


@DATASETS.register_module()
class OfficialCocoDataset(CocoDataset):
    """mmdet's CocoDataset, with the boxes that mmdet leaves out as too small.

    mmdet leaves out boxes that are narrower or lower than one pixel, or whose area is given as 0;
    the official code those alone of which nothing is inside the picture. Arguments are those of
    CocoDataset.
    """

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """One picture as mmdet describes it, `instances` in another order."""
        info = super().parse_data_info(raw_data_info)
        width, height = info['width'], info['height']
        for annotation in raw_data_info['raw_ann_info']:
            x, y, w, h = annotation['bbox']
            taken = annotation['area'] > 0 and w >= 1 and h >= 1
            known = annotation['category_id'] in self.cat2label
            if taken or not known or annotation.get('ignore', False):
                continue
            if min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0):
                instance = dict(
                    ignore_flag=int(annotation.get('iscrowd', False)),
                    bbox=[x, y, x + w, y + h],
                    bbox_label=self.cat2label[annotation['category_id']],
                )
                if annotation.get('segmentation'):
                    instance['mask'] = annotation['segmentation']
                info['instances'].append(instance)
        return info
