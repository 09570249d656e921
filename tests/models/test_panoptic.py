"""Merging of masks into one panoptic map, and its quality."""

import json

import cv2
import numpy as np
import pytest
import torch
from builders import build
from mask_cases import mask_head_config, masked_batch, masks_config
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.structures import DetDataSample
from mmengine.structures import PixelData
from panoptic_cases import quality_by_definition

from ddetr_plugin.models import merge_segments, panoptic_map
from ddetr_plugin.registry import MODELS

NUM_THINGS, NUM_CLASSES = 3, 5


def merge_by_definition(logits, labels, num_things, min_area):
    """Pixel by pixel; sets of pixels by (class, number of the mask, or None for stuff)."""
    names = [(c, i if c < num_things else None) for i, c in enumerate(labels)]
    while True:
        owned = {name: set() for name in names}
        for y, x in np.ndindex(logits.shape[1:]):
            if names:
                best = max(range(len(names)), key=lambda i: logits[i, y, x])
                owned[names[best]].add((y, x))
        small = {name for name, pixels in owned.items() if len(pixels) <= min_area}
        if not small:
            return owned
        keep = [i for i, name in enumerate(names) if name not in small]
        names, logits = [names[i] for i in keep], logits[keep]


@pytest.mark.parametrize('seed', range(6))
def test_pixels_go_to_the_largest_logit_and_small_segments_go(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    # Smooth blobs, a few of them hidden behind others or tiny.
    logits = np.stack([cv2.resize(rng.normal(size=(4, 5)), (15, 12)) for _ in range(count)])
    logits -= rng.uniform(0, 1.5, size=(count, 1, 1))
    labels = rng.integers(0, NUM_CLASSES, count)
    wanted = merge_by_definition(logits, labels, NUM_THINGS, 4)
    coded = panoptic_map(
        torch.from_numpy(logits), torch.from_numpy(labels), NUM_THINGS, NUM_CLASSES
    ).numpy()
    found = {}
    for code in np.unique(coded):
        pixels = frozenset(zip(*(axis.tolist() for axis in np.nonzero(coded == code))))
        found[pixels] = code % INSTANCE_OFFSET
        assert (code >= INSTANCE_OFFSET) == (code % INSTANCE_OFFSET < NUM_THINGS)
    assert found == {frozenset(pixels): label for (label, _), pixels in wanted.items()}


def test_dropping_a_small_segment_keeps_all_masks_of_a_stuff_class():
    logits = torch.full((3, 4, 8), -5.0)
    logits[0, :, :4] = 1  # stuff, left
    logits[1, :, 4:] = 1  # the same stuff, right
    logits[2, 0, 0] = 3  # a thing of one pixel
    owners, labels = merge_segments(logits, torch.tensor([4, 4, 0]), NUM_THINGS)
    assert labels.tolist() == [4]
    assert (owners == 0).all()


@pytest.mark.parametrize('count', [0, 1])
def test_without_segments_every_pixel_is_void(count):
    coded = panoptic_map(torch.zeros(count, 1, 4), torch.zeros(count).long(), 3, NUM_CLASSES)
    assert coded.shape == (1, 4)
    assert (coded == NUM_CLASSES).all()


def panoptic_config(**changes):
    head = mask_head_config(
        type='ddetr_plugin.PanopticMaskHead', num_things=3, num_classes=5, **changes
    )
    return masks_config(mask_head=head)


def test_a_model_predicts_a_map_of_its_best_queries_in_the_size_of_the_picture():
    model = build(panoptic_config(threshold=0.0, min_area=0)).eval()
    inputs, samples = masked_batch()
    # Of different scores, so that one threshold parts them.
    with torch.no_grad():
        model.bbox_head.cls_branches[0].weight.mul_(5)
        scores = model.predict(inputs, samples)[0].pred_instances.scores
        model.mask_head.threshold = scores[7].item()
        results = model.predict(inputs, samples)
        outputs = model.forward_batch(inputs, samples)
    for b, sample in enumerate(results):
        coded = sample.pred_panoptic_seg.sem_seg
        assert coded.shape == (1, *sample.ori_shape)
        best, labels = outputs.logits[-1, b].sigmoid().max(-1)
        kept = {int(labels[q]) for q in (best > model.mask_head.threshold).nonzero()}
        classes = set((coded % INSTANCE_OFFSET).unique().tolist())
        assert classes <= kept or (not kept and classes == {5})
        assert sample.pred_instances.masks.shape[1:] == sample.ori_shape
    # The masks of one picture that its queries give, merged.
    found = results[0].pred_instances
    rows = [
        next(i for i, q in enumerate(found.queries) if q == query)
        for query in found.queries[:7].unique()
    ]
    coded = results[0].pred_panoptic_seg.sem_seg[0]
    alone = found.masks[rows].sum(0) == 1
    for row in rows:
        only = found.masks[row] & alone
        assert (coded[only] % INSTANCE_OFFSET == found.labels[row]).all()


def test_the_numbers_of_classes_must_fit():
    with pytest.raises(ValueError, match='num_things must be at most num_classes'):
        MODELS.build(
            mask_head_config(type='ddetr_plugin.PanopticMaskHead', num_things=6, num_classes=5)
        )


def test_mmdets_metric_reads_the_map(tmp_path):
    """PQ needs panopticapi; mmdet's metric says so where it is missing."""
    pytest.importorskip('panopticapi', reason='panopticapi is not installed')
    from mmdet.evaluation import CocoPanopticMetric
    from panopticapi.utils import id2rgb

    names = ('person', 'dog', 'car', 'sky', 'road')
    rng = np.random.default_rng(3)
    labels = torch.tensor([0, 0, 2, 3, 3, 4])
    logits = torch.from_numpy(
        np.stack([cv2.resize(rng.normal(size=(4, 5)), (50, 40)) for _ in labels])
    )
    wanted = panoptic_map(logits, labels, NUM_THINGS, NUM_CLASSES).numpy()
    noisy = logits + 0.6 * torch.from_numpy(
        np.stack([cv2.resize(rng.normal(size=(4, 5)), (50, 40)) for _ in labels])
    )
    predicted = panoptic_map(noisy, labels, NUM_THINGS, NUM_CLASSES)

    (tmp_path / 'gt').mkdir()
    codes = np.unique(wanted)
    ids = {code: i + 1 for i, code in enumerate(codes)}
    picture = id2rgb(np.vectorize(ids.get)(wanted))
    cv2.imwrite(str(tmp_path / 'gt' / '1.png'), np.ascontiguousarray(picture[..., ::-1]))
    segments = [
        dict(
            id=ids[c], category_id=int(c % INSTANCE_OFFSET) + 1, area=int((wanted == c).sum()),
            bbox=[0, 0, 1, 1], iscrowd=0,
        )
        for c in codes
    ]  # fmt: skip
    content = dict(
        images=[dict(id=1, file_name='1.jpg', width=50, height=40)],
        annotations=[dict(image_id=1, file_name='1.png', segments_info=segments)],
        categories=[
            dict(id=i + 1, name=name, isthing=int(i < NUM_THINGS)) for i, name in enumerate(names)
        ],
    )
    (tmp_path / 'gt.json').write_text(json.dumps(content))
    metric = CocoPanopticMetric(
        ann_file=str(tmp_path / 'gt.json'), seg_prefix=str(tmp_path / 'gt'), nproc=1
    )
    metric.dataset_meta = dict(classes=names, thing_classes=names[:3], stuff_classes=names[3:])
    expected = quality_by_definition(predicted.numpy().copy(), wanted, NUM_CLASSES)
    sample = DetDataSample(metainfo=dict(img_id=1, img_path='1.jpg', ori_shape=(40, 50)))
    sample.pred_panoptic_seg = PixelData(sem_seg=predicted[None])
    metric.process({}, [sample.to_dict()])
    assert 0 < expected < 100
    assert metric.evaluate(1)['coco_panoptic/PQ'] == pytest.approx(expected)
