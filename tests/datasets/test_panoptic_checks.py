"""Panoptic data that does not fit is found before a training."""

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from panoptic_cases import CLASSES, METAINFO, NUM_CLASSES, NUM_THINGS, make_scene, write_scenes

from ddetr_plugin.cli import run_command
from ddetr_plugin.config_files import find_config
from ddetr_plugin.data_checks import check_config
from ddetr_plugin.datasets.load_panoptic import decode_segment_ids
from ddetr_plugin.registry import TRANSFORMS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Config.fromfile(find_config('deformable-detr-panoptic_r50_16xb2-50e_coco'))


class Job:
    """The COCO config, with small data of its own under `roots['train']` and `roots['val']`."""

    def __init__(self, root: Path):
        self.roots = {split: root / split for split in ('train', 'val')}
        self.config = copy.deepcopy(CONFIG)
        for split, folder in self.roots.items():
            write_scenes(folder, [make_scene(seed) for seed in (0, 1)])
            # The same pictures in both are a finding.
            content = self.read(split)
            for image in content['images']:
                name = f'{split}{image["file_name"]}'
                for kind, suffix in (('images', '.jpg'), ('segments', '.png')):
                    old = folder / kind / image['file_name'].replace('.jpg', suffix)
                    old.rename(folder / kind / name.replace('.jpg', suffix))
                image['file_name'] = name
            self.write(content, split)
            dataset = self.config[f'{split}_dataloader'].dataset
            dataset.update(data_root=str(folder), ann_file='annotations.json', metainfo=METAINFO)
            dataset.data_prefix = dict(img='images', seg='segments')
            next(step for step in dataset.pipeline if 'num_things' in step).num_things = NUM_THINGS
        for head in ('bbox_head', 'mask_head'):
            self.config.model[head].num_classes = NUM_CLASSES
        self.config.model.mask_head.num_things = NUM_THINGS

    def read(self, split: str = 'train') -> dict:
        return json.loads((self.roots[split] / 'annotations.json').read_text())

    def write(self, content: dict, split: str = 'train') -> None:
        (self.roots[split] / 'annotations.json').write_text(json.dumps(content))

    def change(self, change, split: str = 'train') -> None:
        content = self.read(split)
        change(content)
        self.write(content, split)

    def found(self, decode: bool = False) -> dict:
        """Findings by (level, kind); not what is noted."""
        findings = check_config(self.config, decode)
        return {(f.level, f.kind): f for f in findings if f.level != 'note'}

    def load(self) -> list[dict]:
        """What mmdet makes of the training's annotation file."""
        with DefaultScope.overwrite_default_scope('mmdet'):
            dataset = dict(self.config.train_dataloader.dataset, lazy_init=True)
            return DATASETS.build(dataset).load_data_list()


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def segment(content: dict) -> dict:
    """The second picture's third segment."""
    return content['annotations'][1]['segments_info'][2]


def rename(part: dict, old: str, new: str) -> None:
    part[new] = part.pop(old)


def swap_isthing(content: dict) -> None:
    for category in content['categories']:
        category['isthing'] = 1 - category['isthing']


def test_good_panoptic_data_has_no_findings_and_the_config_is_not_changed(job):
    before = job.config.pretty_text
    assert job.found(decode=True) == job.found() == {}
    assert job.config.pretty_text == before


@pytest.mark.parametrize(
    ('change', 'part', 'level', 'kind', 'words'),
    [
        (lambda c: c['annotations'][1].update(image_id=99), 'annotation', 'error',
         'annotations of unknown pictures', 'image_id 99'),
        (lambda c: c['annotations'].append(dict(c['annotations'][1], segments_info=[])),
         'annotation', 'error', 'pictures that are annotated more than once', 'train2.jpg, 2'),
        (lambda c: c['images'].append(dict(c['images'][0], file_name='x.jpg')), 'image', 'error',
         'images without an id of their own', '2 times'),
        (lambda c: c['images'][1].update(file_name='gone.jpg'), 'image', 'error',
         'missing pictures', 'images/gone.jpg'),
        (lambda c: c['images'][1].update(file_name='gone.jpg'), 'image', 'error',
         'missing maps of segments', 'segments/gone.png'),
        (lambda c: segment(c).update(category_id=99), 'segment', 'error',
         'segments of unknown classes', 'train2.jpg, category_id 99'),
        (lambda c: segment(c).update(id=c['annotations'][1]['segments_info'][0]['id']), 'segment',
         'error', 'segments without an id of their own', 'train2.jpg, the id occurs 2'),
        *[
            (lambda c, i=i: segment(c).update(id=i), 'segment', 'error',
             'segment ids that no map can hold', f'the id is {i!r}')
            for i in (0, -1, 1 << 24, 1.5, '7', float('nan'))
        ],
        (lambda c: segment(c).pop('bbox'), 'segment', 'error', 'segments without bbox or area',
         'bbox None'),
        (lambda c: segment(c).update(area=None), 'segment', 'error',
         'segments without bbox or area', 'area None'),
        (lambda c: segment(c).update(bbox=[1, 2, 0.5, 9]), 'segment', 'warning',
         'segments without extent', 'bbox [1, 2, 0.5, 9]'),
        (lambda c: segment(c).update(area=0), 'segment', 'warning', 'segments without extent',
         'area 0'),
        (lambda c: segment(c).pop('iscrowd'), 'segment', 'warning', 'segments without iscrowd',
         'iscrowd None'),
        (lambda c: [a['segments_info'].clear() for a in c['annotations']], None, 'error',
         'no segments at all', ''),
        (lambda c: c['categories'][1].update(name='square'), 'category', 'error',
         'class names not unique', 'square'),
        (lambda c: c['categories'][3].pop('isthing'), 'category', 'error',
         'categories without isthing', 'road, isthing None'),
        (swap_isthing, 'category', 'error',
         'things and stuff that the config takes for each other', 'num_things=2 of LoadPanoptic'),
        (lambda c: c['categories'].append(dict(id=200, name='ball', isthing=1)), 'category',
         'warning', 'classes without segments to learn from', 'ball'),
    ],
)  # fmt: skip
def test_a_finding_about_segments_names_file_id_and_remedy(job, change, part, level, kind, words):
    job.change(change)
    found = job.found()[level, kind]
    assert found.part == part and (found.id is None) == (part is None)
    assert words in found.where and str(job.roots['train']) in found.file
    assert found.remedy


def test_what_only_panoptic_quality_needs_is_an_error_in_validation(job):
    job.change(lambda c: segment(c).pop('iscrowd'), 'val')
    assert list(job.found()) == [('error', 'segments without iscrowd')]


def test_a_picture_without_annotation_is_noted(job):
    job.change(lambda c: c['annotations'].pop())
    notes = {f.kind: f for f in check_config(job.config) if f.level == 'note'}
    assert notes['pictures without annotations'].id == 2
    assert job.found() == {}


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: c.pop('categories'), 'it has no categories'),
        (lambda c: rename(c['annotations'][1], 'segments_info', 'segments'),
         'entry 1 of annotations has no usable segments_info'),
        (lambda c: c['annotations'][1].pop('image_id'), 'no usable image_id'),
        (lambda c: segment(c).pop('id'), 'entry 2 of segments_info of image 2 has no usable id'),
        (lambda c: c['annotations'][0]['segments_info'].append(7), 'image 1 has no usable id (fou'),
        (lambda c: c['images'][0].pop('width'), 'entry 0 of images has no usable width'),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused_by_its_entry(job, change, words):
    job.change(change)
    found = job.found()['error', 'annotation files that cannot be read']
    assert words in found.detail


def test_files_and_folders_that_are_not_there_are_named(job):
    dataset = job.config.train_dataloader.dataset
    dataset.data_prefix = dict(img='images', seg='no')
    (found,) = job.found().values()
    assert (found.kind, found.id) == ('missing folders', None)
    assert '2 maps of segments should be in it' in found.detail
    assert 'data_prefix.seg' in found.remedy
    dataset.data_prefix = dict(img='images')
    assert list(job.found()) == [('error', 'no folder of maps of segments')]
    dataset.ann_file = 'no.json'
    (found,) = job.found().values()
    assert found.kind == 'missing annotation files' and found.file.endswith('train/no.json')
    (job.roots['train'] / 'no.json').write_text('{')
    assert list(job.found()) == [('error', 'annotation files that cannot be read')]


@pytest.mark.parametrize(
    ('head', 'key', 'number', 'level', 'kind', 'words'),
    [
        ('bbox_head', 'num_classes', 3, 'error', 'another number of classes', 'bbox_head.num_cl'),
        ('mask_head', 'num_classes', 3, 'error', 'another number of classes', 'mask_head.num_cl'),
        ('bbox_head', 'num_classes', 9, 'warning', 'another number of classes', 'dataset has 4'),
        ('mask_head', 'num_things', 1, 'error', 'things and stuff that', 'of model.mask_head'),
    ],
)  # fmt: skip
def test_a_model_for_other_classes_is_found(job, head, key, number, level, kind, words):
    job.config.model[head][key] = number
    ((found, finding),) = job.found().items()
    assert found[0] == level and kind in found[1]
    assert words in finding.detail and f'{key}=' in finding.remedy


def test_stuff_before_things_is_to_be_sorted_and_another_number_to_be_set(job):
    job.config.train_dataloader.dataset.pipeline[1].num_things = 3
    (found,) = job.found().values()
    assert 'sky is stuff, but label 2 with num_things=3' in found.detail
    assert found.remedy == 'set num_things=2 there'
    # The premise, in the loader that trainings use: sky would not be learned.
    path = job.roots['train'] / 'segments' / 'train1.png'
    data = dict(job.load()[0], ori_shape=(48, 64), seg_map_path=str(path))
    loader = TRANSFORMS.build(job.config.train_dataloader.dataset.pipeline[1])
    loaded = loader(data)
    assert loaded['gt_bboxes_labels'][loaded['gt_ignore_flags']].tolist() == [2]
    for split in job.roots:
        job.change(lambda c: c['categories'].insert(0, c['categories'].pop()), split)
        sorted_names = CLASSES[-1:] + CLASSES[:-1]
        dataset = job.config[f'{split}_dataloader'].dataset
        dataset.metainfo = dict(METAINFO, classes=sorted_names)
    job.config.train_dataloader.dataset.pipeline[1].num_things = 2
    found = [f for f in check_config(job.config) if f.level == 'error']
    for file in ('train', 'val'):
        details = [f.detail for f in found if f'/{file}/' in f.file]
        assert [detail.split(' of ')[0] for detail in details] == [
            'road is stuff, but label 0 with num_things=2',
            'bar is a thing, but label 2 with num_things=2',
        ]
    assert all('list things before stuff' in f.remedy for f in found)


@pytest.mark.parametrize(
    'change',
    [
        lambda c: segment(c).update(category_id=99),
        lambda c: segment(c).pop('bbox'),
        lambda c: segment(c).pop('area'),
        lambda c: [category.pop('isthing') for category in c['categories']],
        lambda c: c['categories'][0].update(name='other'),
    ],
    ids=['unknown class', 'no bbox', 'no area', 'no isthing', 'class left out'],
)
def test_what_mmdet_cannot_load_is_an_error(job, change):
    assert len(job.load()) == 2
    for split in job.roots:
        job.change(change, split)
    assert any(level == 'error' for level, _ in job.found())
    with pytest.raises(KeyError):
        job.load()


def test_segments_of_a_class_that_the_config_leaves_out_are_an_error(job):
    for split in job.roots:
        job.change(lambda c: c['categories'].append(dict(id=200, name='ball', isthing=1)), split)
    assert ('error', 'classes of segments that the config leaves out') not in job.found()
    assert len(job.load()) == 2
    job.change(lambda c: segment(c).update(category_id=200))
    found = job.found()['error', 'classes of segments that the config leaves out']
    assert (found.id, found.detail) == (200, 'ball')
    with pytest.raises(KeyError):
        job.load()


def test_segments_without_extent_are_left_out_by_mmdet(job):
    before = [len(data['segments_info']) for data in job.load()]
    job.change(lambda c: segment(c).update(area=0))
    assert [len(data['segments_info']) for data in job.load()] == [before[0], before[1] - 1]


def write_map(path: Path, ids: np.ndarray) -> None:
    cv2.imwrite(str(path), np.stack([ids >> 16, ids >> 8 & 255, ids & 255], -1).astype(np.uint8))


def test_maps_are_looked_into_only_where_pictures_are(job):
    path = job.roots['train'] / 'segments' / 'train2.png'
    whole = path.read_bytes()
    ids = decode_segment_ids(whole)
    listed = [s['id'] for s in job.read()['annotations'][1]['segments_info']]
    assert set(np.unique(ids)) == set(listed)
    truncated, larger = whole[:-20], np.pad(ids, ((0, 0), (0, 1)), 'edge')
    other = np.where(ids == listed[0], 123, ids)
    void = np.where(ids == listed[0], 0, ids)
    broken, missing = 'broken maps of segments', 'missing maps of segments'
    size = 'maps of another size than their pictures'
    unlisted, absent = 'maps with segments that are not listed', 'segments without a pixel in their'
    for content, wanted in (
        (b'', {('error', broken): 'it is empty'}),
        (b'nothing', {('error', broken): 'it cannot be decoded'}),
        (truncated, {('error', broken): 'truncated'}),
        (larger, {('error', size): 'is 65 x 48, annotations say 64 x 48'}),
        (other, {('warning', unlisted): 'id 123', ('warning', absent): f'id {listed[0]}'}),
        (void, {('warning', absent): f'id {listed[0]}'}),
        (None, {('error', missing): 'not there'}),
    ):  # fmt: skip
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            write_map(path, content)
        assert bool(job.found()) == (content is None)
        found = job.found(decode=True)
        assert len(found) == len(wanted)
        for (level, kind), words in wanted.items():
            (match,) = (f for key, f in found.items() if key[0] == level and kind in key[1])
            assert words in match.detail and (match.file, match.id) == (str(path), 2)


def test_at_most_five_ids_of_a_map_are_named(job):
    path = job.roots['train'] / 'segments' / 'train1.png'
    ids = decode_segment_ids(path.read_bytes())
    ids[:2, :8] = np.arange(1, 9)
    write_map(path, ids)
    found = job.found(decode=True)['warning', 'maps with segments that are not listed']
    assert found.detail == 'id 1, 2, 3, 4, 5 and 3 more'


def test_the_tools_stop_on_a_missing_map_and_say_what_to_do(job, tmp_path, capsys):
    (job.roots['train'] / 'segments' / 'train2.png').unlink()
    path = tmp_path / 'config.py'
    job.config.dump(path)
    with pytest.raises(SystemExit) as stopped:
        run_command('train', [str(path), '--work-dir', str(tmp_path / 'out')])
    assert stopped.value.code == 1
    assert not (tmp_path / 'out').exists()
    printed = capsys.readouterr()
    assert 'error: missing maps of segments (1)' in printed.out
    assert 'what to do: put it there, or remove picture 2 from the annotations' in printed.out
    report = tmp_path / 'report.json'
    with pytest.raises(SystemExit):
        run_command('check', ['--config', str(path), '--json', str(report)])
    assert json.loads(report.read_text())['counts']['error'] == 1
