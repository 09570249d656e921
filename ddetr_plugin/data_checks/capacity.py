"""Whether a model has a query, and a detection, for every box of an image."""

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path

from ddetr_plugin.data_checks.entries import is_scored
from ddetr_plugin.data_checks.findings import Finding

__all__ = ['check_capacity']

# What bbox heads with queries keep of an image if a config does not say, ours and mmdet's.
MAX_PER_IMG = 100
COCO_LIMIT = 100  # detections of an image that COCO's AP counts


def check_capacity(
    model: Mapping, file: Path, content: dict, classes: Sequence[str] | None, scored: bool
) -> list[Finding]:
    """Warnings where images have more boxes than the model has queries, or keeps detections.

    Args:
        model: its config.
        file: the annotation file.
        content: of that file, as `read_annotations` returns it.
        classes: names that the dataset's config chooses; None for all.
        scored: whether detections are to be compared with it.
    """
    queries = _num_queries(model)
    kept = _max_per_img(model, bool(queries)) if scored else None
    limits = [number for _, number in filter(None, (queries, kept))]
    # Counting all is quick, and enough for nearly all data.
    most = max(Counter(map(itemgetter('image_id'), content['annotations'])).values(), default=0)
    if most <= min(limits, default=most):
        return []
    counts = _boxes_of_images(content, classes)
    findings = []
    if queries:
        place, number = queries
        remedy = (
            f'set {place} to more than {{}}, the most boxes of an image: a query finds one box, so '
            'that the others are neither learned nor found'
        )
        findings += _warn('queries', place, number, counts, file, remedy)
    if kept:
        place, number = kept
        remedy = f'set {place} to {{}} or more: detections beyond it are dropped'
        if max(counts, default=0) > COCO_LIMIT:
            remedy += f". COCO's AP counts the best {COCO_LIMIT} of an image in any case"
        findings += _warn('detections that are kept', place, number, counts, file, remedy)
    return findings


def _warn(
    noun: str, place: str, limit: int, counts: Sequence[int], file: Path, remedy: str
) -> list[Finding]:
    above = [count for count in counts if count > limit]
    if not above:
        return []
    detail = (
        f'{len(above)} of {len(counts)} images with boxes ({len(above) / len(counts):.0%}) have '
        f'more than {place}={limit}, up to {max(above)}'
    )
    kind = f'images with more boxes than {noun}'
    remedy = remedy.format(max(above))
    return [Finding('warning', kind, str(file), None, None, detail, remedy)]


def _boxes_of_images(content: dict, classes: Sequence[str] | None) -> list[int]:
    """How many boxes each image has, of those that have any."""
    known = {c['id'] for c in content['categories'] if classes is None or c['name'] in classes}
    return list(
        Counter(
            annotation['image_id']
            for annotation in content['annotations']
            if annotation['category_id'] in known and is_scored(annotation)
        ).values()
    )


def _num_queries(model: Mapping) -> tuple[str, int] | None:
    """Where a detector of ours or mmdet's states its queries, and how many; None without any."""
    head = model.get('query_head')
    if isinstance(head, Mapping) and 'num_queries' in head:
        return 'model.query_head.num_queries', head['num_queries']
    return ('model.num_queries', model['num_queries']) if 'num_queries' in model else None


def _max_per_img(model: Mapping, has_queries: bool) -> tuple[str, int] | None:
    """Where a detector states how many detections it keeps, and how many; None if nobody says."""
    head, test_cfg = model.get('bbox_head'), model.get('test_cfg')
    places = {
        'model.bbox_head.max_per_img': head,
        'model.bbox_head.test_cfg.max_per_img': (head or {}).get('test_cfg')
        if isinstance(head, Mapping)
        else None,
        'model.test_cfg.max_per_img': test_cfg,
        'model.test_cfg.rcnn.max_per_img': (test_cfg or {}).get('rcnn'),
    }
    for place, settings in places.items():
        if isinstance(settings, Mapping) and 'max_per_img' in settings:
            return place, settings['max_per_img']
    if not has_queries or test_cfg is not None:
        return None
    ours = isinstance(model.get('query_head'), Mapping)
    return f'model.{"bbox_head" if ours else "test_cfg"}.max_per_img', MAX_PER_IMG
