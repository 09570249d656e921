"""tools/predict.py on pictures, files and folders of every kind."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.registry import MODELS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tools'))
import predict


@pytest.fixture
def job(tiny_job, tiny_coco, tmp_path):
    """Config file and checkpoint of a model with random weights, as a Runner would leave them."""
    path = tiny_job()
    config = Config.fromfile(path)
    init_default_scope('mmdet')
    weights = MODELS.build(config.model).state_dict()
    checkpoint = tmp_path / 'weights.pth'
    meta = dict(dataset_meta=dict(classes=tiny_coco.classes))
    torch.save(dict(state_dict=weights, meta=meta), checkpoint)
    return path, checkpoint


@pytest.fixture
def run(job, monkeypatch):
    """Runs the tool and returns its exit status: 0, 1, or a message."""

    def call(images, out, config=job[0], checkpoint=job[1]):
        arguments = ['predict.py', images, config, checkpoint, '--out', out, '--score-thr', 0]
        monkeypatch.setattr(sys, 'argv', [*map(str, arguments), '--device', 'cpu'])
        try:
            predict.main()
        except SystemExit as end:
            return end.code
        return 0

    return call


def picture(path, height=48, width=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), noise)
    return path


def file_names(out):
    content = json.loads((out / 'predictions.json').read_text())
    return [image['file_name'] for image in content['images']]


def test_pictures_in_memory_give_what_the_test_pipeline_gives_for_files(job, tmp_path):
    config = Config.fromfile(job[0])
    path = picture(tmp_path / 'a.png', 100, 90)
    model, classes = predict.load_model(config, job[1], 'cpu')
    assert classes == ['square', 'bar', 'post']
    pipeline = predict.build_pipeline(config)
    rows = predict.detect(model, pipeline, predict.read_picture(path), 0.0)
    from_file = Compose(config.test_dataloader.dataset.pipeline)
    data = pseudo_collate([from_file(dict(img_path=str(path), img_id=0, instances=[]))])
    with torch.no_grad():
        wanted = model.test_step(data)[0].pred_instances
    size = torch.tensor([90.0, 100.0, 90.0, 100.0])
    corners = wanted.bboxes.clamp(min=0).minimum(size)
    expected = torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
    assert len(rows) == len(expected) > 0
    torch.testing.assert_close(torch.tensor([box for box, _, _ in rows]), expected)
    assert [label for _, label, _ in rows] == wanted.labels.tolist()


def test_no_picture_ends_the_others_of_its_folder(run, tmp_path, capsys):
    folder = tmp_path / 'pictures'
    whole = picture(folder / 'whole.png')
    (folder / 'text.jpg').write_text('text')
    (folder / 'half.png').write_bytes(whole.read_bytes()[:2000])
    picture(folder / 'thin.png', 3000, 1)  # no width is left at the network's size
    assert run(folder, tmp_path / 'out') == 1
    assert file_names(tmp_path / 'out') == ['whole.png']
    lines = capsys.readouterr().out.splitlines()
    for name in ('text.jpg', 'half.png', 'thin.png'):
        assert any(f'{name}: ' in line and 'skipped' in line for line in lines)


def test_originals_are_never_overwritten(run, tmp_path):
    path = picture(tmp_path / 'pictures' / 'a.png')
    before = path.read_bytes()
    assert 'would be overwritten' in run(path.parent, path.parent)
    assert 'would be overwritten' in run(path, path.parent)
    assert path.read_bytes() == before


def test_pictures_of_the_same_name_stay_apart(run, tmp_path):
    for name in ('a/x.png', 'b/x.png', 'b/x.jpg', 'b/x.bmp'):
        picture(tmp_path / 'pictures' / name)
    out = tmp_path / 'out'
    assert run(tmp_path / 'pictures' / '**' / 'x.*', out) == 0
    assert file_names(out) == ['a/x.png', 'b/x.bmp', 'b/x.jpg', 'b/x.png']
    drawn = sorted(p.relative_to(out).as_posix() for p in out.rglob('x.*'))
    assert drawn == ['a/x.png', 'b/x.bmp.png', 'b/x.jpg', 'b/x.png']


def test_loading_leaves_the_config_as_it_was(job):
    config = Config.fromfile(job[0])
    before = config.pretty_text
    predict.load_model(config, job[1], 'cpu')
    assert config.pretty_text == before


def test_another_model_is_refused_in_a_few_lines(run, job, tiny_job, tmp_path):
    other = tiny_job('other.py', model=dict(bbox_head=dict(num_classes=4)))
    message = run(picture(tmp_path / 'a.png'), tmp_path / 'out', config=other)
    assert 'does not fit' in message and 'work folder' in message
    assert len(message) < 1000


def test_a_file_that_is_no_checkpoint_is_refused_without_unsafe_advice(run, job, tmp_path):
    (tmp_path / 'text.pth').write_text('text')
    message = run(picture(tmp_path / 'a.png'), tmp_path / 'out', checkpoint=tmp_path / 'text.pth')
    assert 'is not a checkpoint' in message
    assert 'weights_only' not in message


def test_the_json_is_an_annotation_file_with_the_ids_of_the_data_set(run, job, tiny_coco, tmp_path):
    config = Config.fromfile(job[0])
    dataset = config.test_dataloader.dataset
    content = json.loads(Path(dataset.ann_file).read_text())
    for category in content['categories']:
        category['id'] = category['id'] * 10 + 7
    for annotation in content['annotations']:
        annotation['category_id'] = annotation['category_id'] * 10 + 7
    other = tmp_path / 'other.json'
    other.write_text(json.dumps(content))
    dataset.ann_file = str(other)
    config.dump(str(tmp_path / 'gaps.py'))
    out = tmp_path / 'out'
    assert run(picture(tmp_path / 'in' / 'a.png'), out, tmp_path / 'gaps.py') == 0
    written = json.loads((out / 'predictions.json').read_text())
    ids = {c['name']: c['id'] for c in content['categories']}
    assert {c['name']: c['id'] for c in written['categories']} == ids
    assert written['annotations']
    assert {a['category_id'] for a in written['annotations']} <= set(ids.values())
    for annotation in written['annotations']:
        assert annotation['iscrowd'] == 0
        assert annotation['area'] == annotation['bbox'][2] * annotation['bbox'][3]
    COCO(out / 'predictions.json')


def test_an_output_that_is_a_file_and_a_config_without_pictures_are_refused(run, job, tmp_path):
    source = picture(tmp_path / 'in' / 'a.png')
    (tmp_path / 'file').touch()
    assert 'is a file; name a folder' in run(source, tmp_path / 'file')
    config = Config.fromfile(job[0])
    config.test_dataloader = None
    config.dump(str(tmp_path / 'no_pictures.py'))
    assert 'no test_dataloader' in run(source, tmp_path / 'out', tmp_path / 'no_pictures.py')
