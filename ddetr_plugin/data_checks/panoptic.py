"""Panoptic training and validation data as a whole: segments, their maps, things and stuff."""

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path

from ddetr_plugin.data_checks.boxes import Report
from ddetr_plugin.data_checks.entries import reporter
from ddetr_plugin.data_checks.findings import Finding
from ddetr_plugin.data_checks.maps import check_maps, find_missing_maps
from ddetr_plugin.data_checks.pictures import Scales
from ddetr_plugin.data_checks.segments import check_segments
from ddetr_plugin.data_checks.splits import Split, check_images, check_labels
from ddetr_plugin.datasets.image_files import AS_MMCV, Decoding

__all__ = ['check_panoptic_split']


def check_panoptic_split(
    split: Split,
    maps: Path | None,
    classes: Sequence[str] | None,
    num_things: Mapping[int, str],
    scales: Scales = (),
    decode: bool = True,
    scored: bool = True,
    decoding: Decoding = AS_MMCV,
) -> list[Finding]:
    """All findings of one split whose annotations are segments.

    Args:
        split: the split, read by `read_panoptic`.
        maps: folder of the PNGs with the segments; None if the config names none.
        classes: the config's names, in the order of the model; None for all of the file.
        num_things: how many of the first classes are things -> where the config says so.
        scales: (width, height) pairs that pictures are resized to, their ratio kept.
        decode: look into every picture and map; else only whether it is there.
        scored: whether predictions are to be compared with it.
        decoding: how the pipeline decodes pictures.
    """
    file, content, training = split.ann_file, split.content, split.name == 'train'
    findings = check_segments(file, content, training, scored)
    findings += _check_things(file, content, classes, num_things)
    if classes is not None:
        findings += check_labels(split, classes)
    findings += check_images(split, scales, decode, decoding)
    if maps is not None:
        return findings + (check_maps if decode else find_missing_maps)(maps, content)
    if training:
        kind, remedy = 'no folder of maps of segments', 'set data_prefix.seg of the dataset'
        findings.append(Finding('error', kind, str(file), None, None, 'nothing is learned', remedy))
    return findings


def _check_things(
    file: Path, content: dict, classes: Sequence[str] | None, num_things: Mapping[int, str]
) -> list[Finding]:
    """Whether every class is what the config takes it for: a thing, stuff, or not there.

    mmdet numbers those categories that the config names, in the order of the file.
    """
    findings: list[Finding] = []
    report = reporter(file, findings)
    named: list[dict] = []
    others: list[dict] = []
    for category in content['categories']:
        known = classes is None or category['name'] in classes
        (named if known else others).append(category)
    segments = chain.from_iterable(map(itemgetter('segments_info'), content['annotations']))
    used = set(map(itemgetter('category_id'), segments)) if others else set()
    for category in others:
        if category['id'] in used:
            report(
                'error',
                'classes of segments that the config leaves out',
                'category',
                category['id'],
                category['name'],
                'mmdet cannot load them; add the name to metainfo.classes, or remove the segments',
            )
    unsaid = [
        category for category in content['categories'] if category.get('isthing') not in (0, 1)
    ]
    for category in unsaid:
        report(
            'error',
            'categories without isthing',
            'category',
            category['id'],
            f'{category["name"]}, isthing {category.get("isthing")!r}',
            'write 1 for what is counted one by one, 0 for stuff such as sky',
        )
    if not unsaid:
        _check_order(named, num_things, report)
    return findings


def _check_order(categories: list[dict], num_things: Mapping[int, str], report: Report) -> None:
    things = [bool(category['isthing']) for category in categories]
    count = sum(things)
    for number, place in num_things.items():
        for label, (category, is_thing) in enumerate(zip(categories, things)):
            if is_thing == (label < number):
                continue
            report(
                'error',
                'things and stuff that the config takes for each other',
                'category',
                category['id'],
                f'{category["name"]} is {"a thing" if is_thing else "stuff"}, but label {label} '
                f'with num_things={number} of {place}',
                f'set num_things={count} there'
                if all(things[:count])
                else 'list things before stuff in categories, and in metainfo.classes, and set '
                f'num_things={count}',
            )
