"""tools/predict.py on pictures, files and folders of every kind."""

import json
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools.coco import COCO

import ddetr_plugin  # noqa: F401  before mmdet
from ddetr_plugin.apis import Detector, PredictionPipeline, load_model
from ddetr_plugin.cli import run_command
from ddetr_plugin.models import DeformableDETR
from ddetr_plugin.registry import MODELS


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
def run(job):
    """Runs the tool and returns its exit status: 0, 1, or a message."""

    def call(images, out, *options, config=job[0], checkpoint=job[1]):
        arguments = [images, config, checkpoint, '--out', out, '--score-thr', 0, *options]
        try:
            run_command('predict', [*map(str, arguments), '--device', 'cpu'])
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


def test_whatever_a_decoder_raises_ends_no_folder(run, tmp_path, monkeypatch):
    """Decoders raise what they like: Pillow's a RuntimeError for a broken AVIF."""
    decode = mmcv.imfrombytes

    def fail(content, **options):
        image = decode(content, **options)
        if image.shape[:2] == (50, 64):
            raise RuntimeError('Failed to decode frame 0')
        return image

    monkeypatch.setattr('mmcv.imfrombytes', fail)
    picture(tmp_path / 'pictures' / 'broken.png', 50)
    picture(tmp_path / 'pictures' / 'whole.png')
    assert run(tmp_path / 'pictures', tmp_path / 'out') == 1
    assert file_names(tmp_path / 'out') == ['whole.png']


def test_a_drawing_that_cannot_be_written_is_an_error(run, tmp_path):
    path = picture(tmp_path / 'pictures' / 'whole.png')
    (tmp_path / 'out' / path.name).mkdir(parents=True)
    assert 'whole.png cannot be written' in run(tmp_path / 'pictures', tmp_path / 'out')


def test_a_picture_too_large_for_the_memory_does_not_end_the_others(run, tmp_path, monkeypatch):
    predict = DeformableDETR.predict

    def fail(model, batch_inputs, samples, rescale=True):
        if samples[0].img_path.endswith('large.png'):
            raise torch.OutOfMemoryError('tried to allocate 1 TiB')
        return predict(model, batch_inputs, samples, rescale)

    monkeypatch.setattr(DeformableDETR, 'predict', fail)
    picture(tmp_path / 'pictures' / 'large.png', 50)
    picture(tmp_path / 'pictures' / 'whole.png')
    assert run(tmp_path / 'pictures', tmp_path / 'out') == 1
    assert file_names(tmp_path / 'out') == ['whole.png']


def annotations(out):
    return json.loads((out / 'predictions.json').read_text())['annotations']


def test_duplicates_are_left_out_only_where_it_is_asked_for(run, tmp_path):
    path = picture(tmp_path / 'pictures' / 'a.png')
    assert run(path, tmp_path / 'all') == 0
    assert run(path, tmp_path / 'one', '--one-class-per-box') == 0
    assert run(path, tmp_path / 'nms', '--nms', 0.3) == 0
    everything = annotations(tmp_path / 'all')
    boxes = {tuple(row['bbox']) for row in everything}
    one = annotations(tmp_path / 'one')
    assert len(everything) > len(one) == len({tuple(row['bbox']) for row in one}) == len(boxes)
    assert 0 < len(annotations(tmp_path / 'nms')) < len(everything)


def test_folders_below_are_predicted_on_request_and_else_named(run, tmp_path, capsys):
    folder = tmp_path / 'pictures'
    for name in ('a.png', 'below/b.png'):
        picture(folder / name)
    (folder / 'clip.mp4').touch()
    assert run(folder, folder / 'out') == 0
    assert file_names(folder / 'out') == ['a.png']
    said = capsys.readouterr().out
    assert 'left out: 1 .mp4 files: clip.mp4' in said
    assert 'left out: 1 folders (--recursive looks into them): below' in said
    # What the first run drew is no image of the second.
    assert run(folder, folder / 'out', '--recursive') == 0
    assert file_names(folder / 'out') == ['a.png', 'below/b.png']


def test_a_model_whose_boxes_are_nan_predicts_nothing_and_says_so(run, job, tmp_path):
    checkpoint = torch.load(job[1])
    for name, tensor in checkpoint['state_dict'].items():
        if name.startswith('bbox_head.reg_branches'):
            tensor.fill_(float('nan'))
    torch.save(checkpoint, tmp_path / 'nan.pth')
    image = picture(tmp_path / 'pictures' / 'a.png')
    said = run(image, tmp_path / 'out', checkpoint=tmp_path / 'nan.pth')
    assert 'the box of query' in said and 'a.png' in said
    assert not (tmp_path / 'out' / 'predictions.json').exists()


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


def test_two_pictures_that_would_be_drawn_to_one_file_are_refused(run, tmp_path):
    for name in ('a.bmp', 'a.bmp.png'):
        picture(tmp_path / 'pictures' / name)
    said = run(tmp_path / 'pictures', tmp_path / 'out')
    assert 'a.bmp and ' in said and 'would both be drawn to' in said
    assert not (tmp_path / 'out').exists()


def test_a_config_without_validation_predicts(run, job, tmp_path):
    config = Config.fromfile(job[0])
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.test_dataloader.dataset.ann_file = 'gone.json'
    config.dump(path := tmp_path / 'no_val.py')
    assert run(picture(tmp_path / 'pictures' / 'a.png'), tmp_path / 'out', config=path) == 0


def test_loading_leaves_the_config_as_it_was(job):
    config = Config.fromfile(job[0])
    before = config.pretty_text
    load_model(config, job[1], 'cpu')
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
    assert run(picture(tmp_path / 'in' / 'a.png'), out, config=tmp_path / 'gaps.py') == 0
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
    assert 'no test_dataloader' in run(source, tmp_path / 'out', config=tmp_path / 'no_pictures.py')


GRADIENT = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)


def colours():
    """(48, 64, 3) uint8, RGB, of which no two channels are alike."""
    return np.stack((GRADIENT, 2 * GRADIENT, 255 - GRADIENT), axis=-1)


def saved(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)


def turned(path):
    """A picture that its EXIF data turn by a quarter: 64 x 48 on the disk, 48 x 64 to the eye."""
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(path, colours(), exif=exif)


KINDS = {
    'grey.png': lambda path: saved(path, GRADIENT),
    'grey.jpg': lambda path: saved(path, GRADIENT),
    'grey with alpha.png': lambda path: saved(path, GRADIENT, 'LA'),
    'rgba.png': lambda path: saved(path, colours(), 'RGBA'),
    'palette.png': lambda path: saved(path, colours(), 'P'),
    'one bit.png': lambda path: saved(path, GRADIENT, '1'),
    'cmyk.jpg': lambda path: saved(path, colours(), 'CMYK', quality=95),
    '16 bit grey.png': lambda path: cv2.imwrite(str(path), GRADIENT.astype(np.uint16) * 257),
    '16 bit.png': lambda path: cv2.imwrite(str(path), colours().astype(np.uint16) * 257),
    '16 bit.tif': lambda path: cv2.imwrite(str(path), colours().astype(np.uint16) * 257),
    'turned.jpg': turned,
    '1 x 1.png': lambda path: saved(path, np.full((1, 1, 3), 99, np.uint8)),
    '8000 x 8000.png': lambda path: saved(path, np.full((8000, 8000), 99, np.uint8)),
}
SIZES = {'turned.jpg': (48, 64), '1 x 1.png': (1, 1), '8000 x 8000.png': (8000, 8000)}


def test_pictures_of_every_kind_are_predicted(run, tmp_path):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for name, write in KINDS.items():
        write(folder / name)
    assert run(folder, tmp_path / 'out') == 0
    content = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    sizes = {image['file_name']: (image['width'], image['height']) for image in content['images']}
    assert sizes == {name: SIZES.get(name, (64, 48)) for name in KINDS}
    ids = {image['id']: image for image in content['images']}
    assert {row['image_id'] for row in content['annotations']} == set(ids)
    for row in content['annotations']:
        x, y, width, height = row['bbox']
        image = ids[row['image_id']]
        assert 0 <= x <= x + width <= image['width'] * (1 + 1e-6)
        assert 0 <= y <= y + height <= image['height'] * (1 + 1e-6)


@pytest.mark.parametrize('name', ['16 bit grey.png', '16 bit.png', '16 bit.tif', 'rgba.png'])
def test_what_a_picture_shows_is_read_and_drawn_on(job, tmp_path, name):
    KINDS[name](tmp_path / name)
    config = Config.fromfile(job[0])
    pipeline = PredictionPipeline(config)
    _, read = pipeline(tmp_path / name)
    if name == '16 bit grey.png':
        expected = np.stack(3 * (GRADIENT,), axis=-1)
    else:
        # cv2 writes and gives BGR, what Pillow writes is RGB.
        expected = colours()[..., ::-1] if name == 'rgba.png' else colours()
    assert np.array_equal(read, expected)
    (found,) = Detector(config, job[1], 'cpu')(tmp_path / name, keep_images=True)
    assert np.array_equal(found.image, expected)


@pytest.mark.parametrize(('height', 'width'), [(1, 5000), (5000, 1)])
def test_a_picture_too_thin_for_the_network_is_skipped_with_the_reason(
    run, tmp_path, capsys, height, width
):
    folder = tmp_path / 'pictures'
    picture(folder / 'thin.png', height, width)
    picture(folder / 'whole.png')
    assert run(folder, tmp_path / 'out') == 1
    assert file_names(tmp_path / 'out') == ['whole.png']
    line = next(line for line in capsys.readouterr().out.splitlines() if 'thin.png' in line)
    assert 'no width or height is left' in line and 'skipped' in line
