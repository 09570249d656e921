"""Large images in tiles: what the whole image misses is found, and found once."""

import numpy as np
import pytest
from blob_detector import LEAST, scene

from ddetr_plugin.apis.tiles import Tile, make_tiles, merge_tiles


@pytest.mark.parametrize('overlap', [0.0, 0.2, 0.5])
@pytest.mark.parametrize('size', [(100, 100), (101, 640), (641, 333), (1000, 1777), (90, 3000)])
def test_tiles_cover_the_image_with_at_least_the_overlap(size, overlap):
    whole, *tiles = make_tiles(size, 100, overlap)
    assert whole == (0, 0, size[1], size[0])
    if size == (100, 100):
        assert tiles == []
        return
    covered = np.zeros(size, int)
    for tile in tiles:
        assert tile.of(covered).shape == (min(100, size[0]), min(100, size[1]))
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert covered.min() == 1
    for low, high in ((0, 2), (1, 3)):
        spans = sorted({(tile[low], tile[high]) for tile in tiles})
        for (_, end), (start, _) in zip(spans, spans[1:]):
            assert end - start >= 100 * overlap - 1


def test_a_tile_is_a_copy_of_its_part():
    image = np.arange(20 * 30 * 3).reshape(20, 30, 3)
    part = Tile(5, 10, 15, 20).of(image)
    assert np.array_equal(part, image[10:20, 5:15]) and part.flags.c_contiguous


# Two tiles beside each other, 100 wide with 20 in common, and the whole image.
TILES = [Tile(0, 0, 180, 100), Tile(0, 0, 100, 100), Tile(80, 0, 180, 100)]


def merge(*rows):
    """Rows are (tile, x1, y1, x2, y2, score[, label]); returns ([box, members] of each object)."""
    rows = [(*row, 0)[:7] for row in rows]
    boxes = np.array([row[1:5] for row in rows], float).reshape(-1, 4)
    scores, labels = (np.array([row[i] for row in rows]) for i in (5, 6))
    origins = np.array([row[0] for row in rows], int)
    found, groups = merge_tiles(boxes, scores, labels, origins, TILES)
    assert sorted(m for group in groups for m in group) == list(range(len(rows)))
    return [(box.tolist(), group) for box, group in zip(found, groups)]


def test_an_object_that_one_tile_cuts_is_the_whole_one():
    # The part has the better score, and the box is that of the whole.
    assert merge((1, 70, 10, 98, 50, 0.6), (2, 80, 11, 98, 50, 0.9)) == [([70, 10, 98, 50], [0, 1])]


def test_halves_that_both_tiles_cut_are_joined():
    assert merge((1, 30, 10, 100, 50, 0.6), (2, 80, 12, 150, 52, 0.5)) == [
        ([30, 10, 150, 52], [0, 1])
    ]


def test_a_large_object_swallows_its_parts():
    assert merge((1, 2, 2, 100, 98, 0.9), (2, 80, 2, 178, 98, 0.8), (0, 2, 2, 178, 98, 0.4)) == [
        ([2, 2, 178, 98], [2, 0, 1])
    ]


def test_an_object_in_what_tiles_have_in_common_is_one():
    assert (
        len(merge((1, 84, 10, 96, 30, 0.6), (2, 84, 11, 96, 31, 0.5), (0, 85, 9, 97, 30, 1))) == 1
    )


def test_a_small_object_in_front_of_a_large_one_stays():
    assert len(merge((0, 0, 0, 180, 100, 0.9), (1, 20, 20, 40, 40, 0.8))) == 2
    assert len(merge((0, 10, 10, 170, 90, 0.5), (2, 100, 20, 120, 40, 0.8))) == 2


def test_neighbours_of_one_tile_and_objects_of_two_classes_stay():
    assert len(merge((1, 10, 10, 40, 40, 0.9), (1, 12, 10, 42, 40, 0.8))) == 2
    assert len(merge((1, 84, 10, 96, 30, 0.6, 0), (2, 84, 10, 96, 30, 0.5, 1))) == 2
    # Of two neighbours in the next tile, the one that agrees more is the same object.
    assert [group for _, group in merge(
        (1, 81, 10, 99, 40, 0.9), (2, 81, 20, 99, 50, 0.8), (2, 81, 11, 99, 40, 0.7)
    )] == [[0, 2], [1]]  # fmt: skip


def test_objects_that_only_touch_the_common_part_stay():
    assert len(merge((1, 40, 10, 82, 50, 0.9), (2, 83, 10, 130, 50, 0.8))) == 2


def test_no_detections_are_no_objects():
    assert merge() == []


def test_objects_are_sorted_by_their_best_scores():
    found = merge((1, 0, 0, 9, 9, 0.2), (1, 50, 50, 60, 60, 0.5), (0, 0, 0, 9, 9, 0.9))
    assert [group for _, group in found] == [[2, 0], [1]]


@pytest.fixture
def crowd():
    """A large image: 40 small blobs, some on borders of tiles, and one larger than a tile."""
    rng = np.random.default_rng(0)
    blobs = [(300, 500, 500, 220, 0)]
    for row in range(8):
        for column in range(5):
            x = column * 230 + int(rng.integers(0, 100))
            y = row * 60 + int(rng.integers(0, 30))
            blobs.append((x, y, *rng.integers(10, 24, 2).tolist(), int(rng.integers(2))))
    # On the borders of tiles of 256 with an overlap of a fifth.
    blobs += [(198, 760, 40, 16, 1), (250, 730, 16, 16, 0)]
    return scene(800, 1200, *blobs), blobs


def recall(found, blobs):
    """Which blobs are found, to within 4 pixels, and how many detections are on none."""
    wanted = np.array([(x, y, x + w, y + h, label) for x, y, w, h, label in blobs], float)
    rows = np.column_stack((found.boxes, found.labels))
    near = np.abs(rows[:, None] - wanted) <= (4, 4, 4, 4, 0)
    return near.all(2).any(0), int((~near.all(2).any(1)).sum())


@pytest.mark.parametrize(('batch_size', 'num_workers'), [(1, 0), (4, 2)])
def test_small_objects_are_found_once_each_and_large_ones_too(
    blob_detector, crowd, batch_size, num_workers
):
    image, blobs = crowd
    detector = blob_detector()
    (whole,) = detector(image)
    hit, _ = recall(whole, blobs)
    # At the network's size they are smaller than it can see.
    assert max(256 / 1200 * max(w, h) for _, _, w, h, _ in blobs[1:41]) < LEAST
    assert hit[0] and hit.sum() <= 2
    options = dict(batch_size=batch_size, num_workers=num_workers)
    (tiled,) = detector(image, tiles=256, overlap=0.2, **options)
    hit, wrong = recall(tiled, blobs)
    assert hit.all() and wrong == 0
    assert len(tiled) == len(blobs), 'what several tiles see is found once'
    assert tiled.size == (800, 1200)


def test_masks_of_tiles_are_put_together(blob_detector):
    image = scene(200, 300, (60, 50, 180, 100, 0), (20, 10, 12, 12, 1))
    (found,) = blob_detector(with_masks=True)(image, tiles=128, overlap=0.25)
    assert found.names == ['green', 'red'] and found.masks.shape == (2, 200, 300)
    for mask, label in zip(found.masks, (0, 1)):
        wanted = image[..., label + 1] > 0
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9


def test_an_image_that_is_no_larger_than_a_tile_is_seen_once(blob_detector):
    detector = blob_detector()
    image = scene(100, 200, (10, 10, 40, 40, 0))
    (whole,), (tiled,) = detector(image), detector(image, tiles=200)
    assert np.array_equal(whole.boxes, tiled.boxes) and detector.model.batches == [1, 1]


def test_nms_and_the_threshold_hold_for_the_whole_image(blob_detector):
    image = scene(200, 300, (60, 50, 180, 100, 0), (20, 10, 12, 12, 0))
    (found,) = blob_detector()(image, tiles=128, score_thr=0.52)
    assert len(found) == 1 and found.scores[0] >= 0.52
