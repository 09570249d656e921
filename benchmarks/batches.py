"""Random images with ground truths, for whatever takes mmdet's batches."""

import torch


def random_batch(batch, height, width, device, num_classes=80, objects=8):
    """Random pictures, each with boxes at least a tenth of it wide, and the masks that fill them.

    Returns:
        (batch, 3, height, width) tensor, and list of mmdet's DetDataSample.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, 3, height, width, generator=generator).to(device)
    samples = []
    for _ in range(batch):
        low = torch.rand(objects, 2, generator=generator) * 0.6
        extent = torch.rand(objects, 2, generator=generator) * 0.3 + 0.1
        boxes = torch.cat([low, low + extent], dim=1) * torch.tensor([width, height] * 2)
        masks = torch.zeros(objects, height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
            mask[top:bottom, left:right] = 1
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                batch_input_shape=(height, width),
                pad_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes.to(device),
            labels=torch.randint(num_classes, (objects,), generator=generator).to(device),
            masks=BitmapMasks(masks.numpy(), height, width),
        )
        samples.append(sample)
    return inputs, samples
