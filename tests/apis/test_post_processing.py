"""Detections that are left out on request, against definitions written as loops."""

import pytest
import torch
from mmengine.structures import InstanceData

from ddetr_plugin.apis import one_class_per_box, suppress_overlaps


def random_detections(count=60, with_queries=True):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(0, 20, (count,), generator=generator)
    corners = torch.rand(20, 2, generator=generator) * 60
    boxes = torch.cat((corners, corners + 5 + torch.rand(20, 2, generator=generator) * 40), 1)
    scores = torch.rand(count, generator=generator).round(decimals=1)  # With many ties.
    found = InstanceData(
        bboxes=boxes[queries],
        scores=scores,
        labels=torch.randint(0, 3, (count,), generator=generator),
    )
    if with_queries:
        found.queries = queries
    return found


def overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inner = width * height
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


def rows(found):
    names = ('bboxes', 'scores', 'labels')
    return list(zip(*(getattr(found, name).tolist() for name in names)))


@pytest.mark.parametrize('with_queries', [True, False])
def test_each_query_keeps_its_best_class(with_queries):
    found = random_detections(with_queries=with_queries)
    kept = one_class_per_box(found)
    best = {}
    for box, score, _ in rows(found):
        best[tuple(box)] = max(score, best.get(tuple(box), 0.0))
    assert {tuple(box): score for box, score, _ in rows(kept)} == best
    assert len(kept) == len(best)
    assert kept.scores.tolist() == sorted(kept.scores.tolist(), reverse=True)


@pytest.mark.parametrize('iou', [0.0, 0.3, 0.7, 1.0])
def test_overlaps_are_suppressed_within_a_class_as_greedy_nms_does(iou):
    found = random_detections()
    expected = []
    for row in sorted(rows(found), key=lambda row: -row[1]):
        if all(row[2] != other[2] or overlap(row[0], other[0]) <= iou for other in expected):
            expected.append(row)
    assert rows(suppress_overlaps(found, iou)) == expected
    assert 0 < len(expected) <= len(found)


def test_no_detections_stay_none_and_an_absurd_iou_is_refused():
    nothing = random_detections()[torch.zeros(60, dtype=torch.bool)]
    assert len(one_class_per_box(nothing)) == len(suppress_overlaps(nothing, 0.5)) == 0
    with pytest.raises(ValueError, match='0..1, got 1.5'):
        suppress_overlaps(nothing, 1.5)
