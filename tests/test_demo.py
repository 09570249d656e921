"""tools/demo.py and tools/predict.py, from data to pictures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(tool, *args):
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / tool), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope='module')
def trained(tiny_coco, tmp_path_factory):
    """A data set without validation split, and the work folder of four iterations on it."""
    folder = tmp_path_factory.mktemp('demo')
    data, work_dir = folder / 'data', folder / 'work'
    (data / 'annotations').mkdir(parents=True)
    shutil.copytree(tiny_coco.images, data / 'images')
    shutil.copy(tiny_coco.annotations, data / 'annotations/instances_train.json')
    options = [
        '--data', data, '--work-dir', work_dir, '--cfg-options', 'train_cfg.max_iters=4',
        'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2',
        'train_dataloader.batch_size=2',
        'model.backbone.pretrained=False', 'default_hooks.logger.interval=1',
    ]  # fmt: skip
    result = run('demo.py', *options)
    assert result.returncode == 0, result.stderr[-3000:]
    return data, work_dir, options, result


def test_the_demo_leaves_what_it_promises(trained):
    _, work_dir, _, result = trained
    assert 'a fifth of the training pictures is held out' in result.stdout
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    expected = {f'bbox_mAP{suffix}' for suffix in ('', '_50', '_75', '_s', '_m', '_l')}
    assert metrics.keys() == expected | {'train_seconds', 'iterations'}
    assert metrics['iterations'] == 4 and metrics['train_seconds'] > 0
    for name in ('curves.png', 'detections.png'):
        assert cv2.imread(str(work_dir / name)).size > 0
    assert len(list((work_dir / 'detections').glob('*.png'))) == 1
    assert (work_dir / 'iter_4.pth').exists()


def test_a_complete_training_is_evaluated_and_not_repeated(trained):
    _, work_dir, options, _ = trained
    before = (work_dir / 'iter_4.pth').stat().st_mtime_ns
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    result = run('demo.py', *options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert 'The training is complete' in result.stdout
    assert (work_dir / 'iter_4.pth').stat().st_mtime_ns == before
    again = json.loads((work_dir / 'metrics.json').read_text())
    assert again['bbox_mAP'] == metrics['bbox_mAP']


def test_wrong_data_stops_before_training(trained, tmp_path):
    data, *_ = trained
    shutil.copytree(data, tmp_path / 'data')
    (tmp_path / 'data/images/01.png').unlink()
    result = run('demo.py', '--data', tmp_path / 'data', '--work-dir', tmp_path / 'work')
    assert result.returncode == 1
    assert 'missing pictures' in result.stdout and '01.png' in result.stdout
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_predict_draws_every_readable_picture_and_reports_the_others(trained, tmp_path):
    _, work_dir, *_ = trained
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    rng = np.random.default_rng(0)
    cv2.imwrite(str(pictures / 'grey.png'), rng.integers(0, 255, (40, 60), dtype=np.uint8))
    cv2.imwrite(str(pictures / 'alpha.png'), rng.integers(0, 255, (50, 70, 4), dtype=np.uint8))
    (pictures / 'broken.jpg').write_bytes(b'not a picture')
    config = next(work_dir.glob('*.py'))
    out = tmp_path / 'out'
    result = run(
        'predict.py', pictures, config, work_dir / 'iter_4.pth', '--out', out, '--score-thr', '0'
    )
    assert result.returncode == 1
    assert 'broken.jpg: not a readable picture' in result.stdout
    content = json.loads((out / 'predictions.json').read_text())
    sizes = {i['file_name']: (i['width'], i['height']) for i in content['images']}
    assert sizes == {'grey.png': (60, 40), 'alpha.png': (70, 50)}
    assert [c['name'] for c in content['categories']] == ['square', 'bar', 'post']
    images = {i['id']: i for i in content['images']}
    assert content['annotations']
    for annotation in content['annotations']:
        x, y, width, height = annotation['bbox']
        image = images[annotation['image_id']]
        assert x >= 0 and x + width <= image['width'] + 1e-3
        assert y >= 0 and y + height <= image['height'] + 1e-3
    assert (out / 'grey.png').exists() and (out / 'alpha.png').exists()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('nothing-here', 'CONFIG', 'CHECKPOINT'), 'is no picture'),
        (('PICTURE', 'CONFIG', 'gone.pth'), 'gone.pth does not exist'),
    ],
)
def test_predict_says_what_is_missing(trained, tiny_coco, tmp_path, args, message):
    _, work_dir, *_ = trained
    names = {
        'PICTURE': tiny_coco.images / '01.png',
        'CONFIG': next(work_dir.glob('*.py')),
        'CHECKPOINT': work_dir / 'iter_4.pth',
    }
    result = run('predict.py', *(names.get(a, a) for a in args), '--out', tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert 'Traceback' not in result.stderr
