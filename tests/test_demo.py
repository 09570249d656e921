"""tools/demo.py and tools/predict.py, from data to pictures."""

import json
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import check_dataset
import cv2
import demo
import numpy as np
import pytest
import torch

from ddetr_plugin.engine.launch import load_config

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 'configs/deformable-detr_r50_16xb2-50e_coco.py'


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
    assert json.loads((work_dir / 'metrics.json').read_text()) == metrics


def test_wrong_data_stops_before_training(trained, tmp_path):
    data, *_ = trained
    shutil.copytree(data, tmp_path / 'data')
    (tmp_path / 'data/images/01.png').unlink()
    result = run('demo.py', '--data', tmp_path / 'data', '--work-dir', tmp_path / 'work')
    assert result.returncode == 1
    assert 'missing pictures' in result.stdout and '01.png' in result.stdout
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (['--iters', '8'], 'param_scheduler of the config'),
        (['--cfg-options', 'model.query_head.num_queries=7'], 'model of the config'),
        (['--data', 'OTHER'], 'the data'),
        (['--data', 'CHANGED'], 'the training annotations'),
    ],
)
def test_another_training_is_not_evaluated_in_place_of_this_one(
    trained, tmp_path, arguments, named
):
    data, work_dir, options, _ = trained
    # Of the same name and with the same classes.
    other = shutil.copytree(data, tmp_path / data.name)
    file = data / 'annotations/instances_train.json'
    before = file.read_text()
    if 'CHANGED' in arguments:
        content = json.loads(before)
        content['annotations'].pop()
        file.write_text(json.dumps(content))
    places = {'OTHER': str(other), 'CHANGED': str(data)}
    arguments = [places.get(a, a) for a in arguments]
    kept = options[options.index('--cfg-options') :]
    if '--cfg-options' in arguments:
        kept += arguments[1:]
        arguments = []
    if '--data' not in arguments:
        arguments += ['--data', data]
    try:
        result = run('demo.py', '--work-dir', work_dir, *arguments, *kept)
    finally:
        file.write_text(before)
    assert result.returncode == 1
    assert f'holds another training: {named}' in result.stderr
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config', 'gone.py'], 'gone.py does not exist'),
        (['--config', 'README.md'], 'a config ends with .py'),
        (['--config', EPOCHS], 'the config for this tool counts iterations'),
        (['--data', 'gone'], 'gone is not a folder'),
        (['--iters', '0'], '--iters must be at least 2'),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing_behind(tmp_path, arguments, message):
    result = run('demo.py', '--data', tmp_path, '--work-dir', tmp_path / 'work', *arguments)
    assert result.returncode != 0
    assert message in result.stderr
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('iterations', [2, 100, 8000])
def test_a_length_reaches_loop_schedule_validations_and_checkpoints(iterations):
    config = load_config(demo.DEMO_CONFIG)
    demo.set_iterations(config, iterations)
    interval = max(1, iterations // 5)
    assert config.train_cfg.max_iters == iterations
    assert config.train_cfg.val_interval == config.default_hooks.checkpoint.interval == interval
    warm_up, cosine = config.param_scheduler
    assert warm_up.end == cosine.begin == min(50, iterations // 2)
    assert cosine.end == iterations
    assert cosine.T_max == iterations - cosine.begin


def test_an_override_that_nothing_reads_is_warned_of():
    with pytest.warns(UserWarning, match='max_iters=... changes a variable .* nothing reads'):
        load_config(demo.DEMO_CONFIG, dict(max_iters=3))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_config(
            demo.DEMO_CONFIG,
            {'train_cfg.max_iters': 3, 'work_dir': 'x', 'randomness.seed': 1, 'custom_hooks': []},
        )


def split_of(tmp_path, annotated, empty):
    count = annotated + empty
    images = [dict(id=i, file_name=f'{i}.png', width=9, height=9) for i in range(count)]
    annotations = [dict(id=i + 1, image_id=i, category_id=1) for i in range(annotated)]
    content = dict(images=images, annotations=annotations, categories=[])
    return check_dataset.Split('train', tmp_path / 'train.json', tmp_path, content)


@pytest.mark.parametrize(('annotated', 'empty'), [(2, 50), (50, 2), (10, 0), (3, 7)])
def test_both_parts_of_a_split_have_boxes(tmp_path, annotated, empty):
    train, val = demo.split_off_validation(split_of(tmp_path, annotated, empty), tmp_path / 'work')
    assert train.content['annotations']
    assert val.content['annotations']
    ids = [image['id'] for part in (train, val) for image in part.content['images']]
    assert sorted(ids) == list(range(annotated + empty))
    assert len(val.content['images']) == max(1, annotated // 5) + empty // 5


@pytest.mark.parametrize('annotated', [0, 1])
def test_too_few_pictures_with_boxes_cannot_be_split(tmp_path, annotated):
    with pytest.raises(SystemExit, match='cannot be split'):
        demo.split_off_validation(split_of(tmp_path, annotated, 9), tmp_path / 'work')


@pytest.mark.slow
def test_an_interrupted_training_resumes_to_the_same_result(trained, tmp_path):
    data, work_dir, options, _ = trained
    options = [tmp_path / 'work' if option == work_dir else option for option in options]
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools/demo.py'), *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    checkpoint = tmp_path / 'work/last_checkpoint'
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0].decode()
    if process.returncode == 0:
        pytest.skip('the training was over before it could be interrupted')
    assert 'The same command resumes' in output, output[-2000:]
    result = run('demo.py', *options)
    assert result.returncode == 0, result.stderr[-3000:]
    wanted, found = (
        torch.load(folder / 'iter_4.pth')['state_dict'] for folder in (work_dir, tmp_path / 'work')
    )
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


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
