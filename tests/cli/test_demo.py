"""tools/demo.py and tools/predict.py, from data to pictures."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from forked import run_forked
from mmengine.registry import PARAM_SCHEDULERS

from ddetr_plugin.apis import own_training
from ddetr_plugin.apis.configs import find_config
from ddetr_plugin.apis.own_data import CUSTOM_CONFIG, DEMO_CONFIG, add_clock, read_config
from ddetr_plugin.apis.same_training import check_same_training, last_checkpoint
from ddetr_plugin.cli import run_command
from ddetr_plugin.data_checks import Split, config_scales, is_scored
from ddetr_plugin.engine.work_dir.lock import LOCK
from ddetr_plugin.intake import split_off_validation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def trained(tiny_coco, tmp_path_factory):
    """A data set without validation split, and the work folder of four iterations on it."""
    folder = tmp_path_factory.mktemp('demo')
    data, work_dir = folder / 'data', folder / 'work'
    (data / 'annotations').mkdir(parents=True)
    shutil.copytree(tiny_coco.images, data / 'images')
    shutil.copy(tiny_coco.annotations, data / 'annotations/instances_train.json')
    options = [
        '--data', data, '--work-dir', work_dir, '--iters', '4', '--cfg-options',
        'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2',
        'train_dataloader.batch_size=2', 'model.backbone.pretrained=False',
    ]  # fmt: skip
    result = run_forked('demo', options)
    assert result.returncode == 0, result.stderr[:2000] + result.stderr[-2000:]
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
    result = run_forked('demo', options)
    assert result.returncode == 0, result.stderr[:2000] + result.stderr[-2000:]
    assert 'The training is complete' in result.stdout
    assert (work_dir / 'iter_4.pth').stat().st_mtime_ns == before
    again = json.loads((work_dir / 'metrics.json').read_text())
    assert again == metrics


def test_the_newest_complete_checkpoint_is_the_last_one_though_the_note_is_of_a_broken_one(
    trained, tmp_path
):
    _, work_dir, *_ = trained
    assert last_checkpoint(work_dir) == (str(work_dir / 'iter_4.pth'), 4)
    assert last_checkpoint(tmp_path) == (None, 0)
    for name in ('iter_4.pth', 'last_checkpoint'):
        shutil.copy(work_dir / name, tmp_path / name)
    shutil.copy(work_dir / 'iter_4.pth', tmp_path / 'iter_2.pth')
    # The note still names the folder that the copy is of.
    assert last_checkpoint(tmp_path) == (str(tmp_path / 'iter_4.pth'), 4)
    path = tmp_path / 'iter_4.pth'
    path.write_bytes(path.read_bytes()[:-100])
    assert last_checkpoint(tmp_path) == (str(tmp_path / 'iter_2.pth'), 2)
    path.unlink()
    assert last_checkpoint(tmp_path) == (str(tmp_path / 'iter_2.pth'), 2)


@pytest.mark.parametrize('metrics', [None, dict(train_seconds=1.0, iterations=3), [], 'cut off'])
def test_the_metrics_are_those_of_the_checkpoint_and_not_of_the_config(
    trained, tmp_path, monkeypatch, metrics
):
    _, work_dir, *_ = trained
    for name in ('last_checkpoint', 'iter_4.pth'):
        (tmp_path / name).symlink_to(work_dir / name)
    if metrics is not None:
        (tmp_path / 'metrics.json').write_text(
            json.dumps(metrics)[: 5 if metrics == 'cut off' else None]
        )

    class Runner:
        def load_checkpoint(self, path):
            return torch.load(path, weights_only=False)

        def test(self):
            return {'coco/bbox_mAP': 0.5, 'else': 1}

    monkeypatch.setattr(own_training, 'build_runner', lambda config: Runner())
    config = read_config(CUSTOM_CONFIG, {'train_cfg.max_iters': 2}, tmp_path)
    found = own_training.train_and_test(config, tmp_path)
    clock = torch.load(tmp_path / 'iter_4.pth', weights_only=False)['message_hub']['runtime_info']
    seconds = round(clock['train_seconds'], 1)
    assert found == dict(bbox_mAP=0.5, train_seconds=seconds, iterations=4)


INTERRUPTING_HOOK = """
import os
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class InterruptAt(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == int(os.environ.get('INTERRUPT_AT', -1)):
            # Whoever runs the tests in the background has switched it off.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGINT)
"""


def test_an_interrupted_training_resumes_and_ends_as_an_uninterrupted_one(trained, tmp_path):
    _, whole, options, _ = trained
    (tmp_path / 'interrupting_hook.py').write_text(INTERRUPTING_HOOK)
    (tmp_path / 'config.py').write_text(
        f'_base_ = {str(find_config(CUSTOM_CONFIG))!r}\n'
        "custom_imports = dict(imports=['ddetr_plugin', 'interrupting_hook'])\n"
        "custom_hooks = _base_.custom_hooks + [dict(type='mmengine.InterruptAt')]\n"
    )
    work = tmp_path / 'work'
    options = [*options[:2], '--work-dir', work, '--config', tmp_path / 'config.py', *options[4:]]

    result = run_forked('demo', options, [dict(INTERRUPT_AT='3')], [tmp_path])
    assert result.returncode == 1, result.stderr[-3000:]
    assert 'Interrupted. The same command resumes from the last checkpoint.' in result.stderr
    assert 'Traceback' not in result.stderr
    assert (work / 'iter_2.pth').exists() and not (work / 'metrics.json').exists()

    result = run_forked('demo', options, paths=[tmp_path])
    assert result.returncode == 0, result.stderr[:2000] + result.stderr[-2000:]
    assert f'Resuming from {work}/iter_2.pth' in result.stdout
    if torch.cuda.is_available():
        return  # sums in another order every time
    weights, resumed_weights = (
        torch.load(folder / 'iter_4.pth', weights_only=False)['state_dict']
        for folder in (whole, work)
    )
    assert weights.keys() == resumed_weights.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, resumed_weights[name]), name
    metrics, resumed = (
        json.loads((folder / 'metrics.json').read_text()) for folder in (whole, work)
    )
    assert metrics.pop('train_seconds') > 0 and resumed.pop('train_seconds') > 0
    assert resumed == metrics


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def correct_a_box(data):
    edit(
        data / 'annotations/instances_train.json',
        lambda content: content['annotations'][0].update(bbox=[1, 1, 9, 9], area=81),
    )


def add_a_picture(data):
    shutil.copy(data / 'images/01.png', data / 'images/new.png')
    new = dict(id=99, file_name='new.png', width=64, height=48)
    edit(data / 'annotations/instances_train.json', lambda content: content['images'].append(new))


def rename_a_class(data):
    edit(
        data / 'annotations/instances_train.json',
        lambda content: content['categories'][1].update(name='pole'),
    )


def train_elsewhere(data):
    stated = data.parent / 'work/training.json'
    stated.write_text(stated.read_text().replace(str(data.resolve()), '/elsewhere/data'))


def forget_what_it_was(data):
    (data.parent / 'work/training.json').unlink()


@pytest.mark.parametrize(
    ('change', 'options', 'message'),
    [
        (correct_a_box, (), 'training data.content: was sha256 .*, now sha256'),
        (add_a_picture, (), 'data.content: was'),
        (rename_a_class, (), 'classes.1: was bar, now pole'),
        (train_elsewhere, (), 'training data.pictures: was /elsewhere/data/images, now .*/images'),
        (forget_what_it_was, (), 'training.json is missing or cannot be read'),
        (None, ['optim_wrapper.optimizer.lr=1'], 'optim_wrapper.optimizer.lr: was 0.0007, now 1'),
        (None, ['model.query_head.num_queries=7'], 'query_head.num_queries: was 100, now 7'),
        (None, ['train_dataloader.batch_size=3'], 'train_dataloader.batch_size: was 2, now 3'),
        (None, ['train_dataloader.dataset.ann_file=x'], 'dataset.ann_file: was None, now x'),
        (None, ['train_dataloader.num_workers=0'], None),
    ],
)
def test_another_training_in_the_work_folder_is_not_taken_for_this_one(
    trained, tmp_path, monkeypatch, change, options, message
):
    original, work_dir, arguments, _ = trained
    stated = json.loads((work_dir / 'training.json').read_text())
    data, work = tmp_path / 'data', tmp_path / 'work'
    shutil.copytree(original, data)
    work.mkdir()
    for name in ('last_checkpoint', 'iter_4.pth'):
        (work / name).symlink_to(work_dir / name)
    # As if the training had been on the copy.
    text = json.dumps(stated).replace(str(original.resolve()), str(data.resolve()))
    (work / 'training.json').write_text(text)
    if change:
        change(data)
    before = {path.name: path.stat().st_mtime_ns for path in work.iterdir()}

    class EvaluatedError(Exception):
        pass

    def evaluate(config, work_dir, log):
        raise EvaluatedError

    monkeypatch.setattr(own_training, 'train_and_test', evaluate)
    replaced = ['--data', data, '--work-dir', work, *arguments[4:], *options]
    replaced = [*map(str, replaced)]
    if message is None:
        with pytest.raises(EvaluatedError):
            run_command('demo', replaced)
        return
    with pytest.raises(SystemExit, match=f'(?s)holds another training:.*{message}.*--work-dir'):
        run_command('demo', replaced)
    after = {path.name: path.stat().st_mtime_ns for path in work.iterdir() if path.name != LOCK}
    assert after == before


def test_wrong_data_stops_before_training(trained, tmp_path):
    data, *_ = trained
    shutil.copytree(data, tmp_path / 'data')
    (tmp_path / 'data/images/01.png').unlink()
    result = run_forked('demo', ['--data', tmp_path / 'data', '--work-dir', tmp_path / 'work'])
    assert result.returncode == 1
    assert 'missing pictures' in result.stdout and '01.png' in result.stdout
    assert not (tmp_path / 'work').exists()


def test_a_folder_without_checkpoints_is_free_for_another_training(tmp_path):
    check_same_training(tmp_path, dict(classes=('a',)))
    check_same_training(tmp_path, dict(classes=('b',)))
    assert json.loads((tmp_path / 'training.json').read_text()) == dict(classes=['b'])


def train_split(folder, images, boxes):
    """A training split of `images` pictures, the last `boxes` of them with one box each."""
    box = dict(category_id=1, bbox=[1, 1, 5, 5], area=25, iscrowd=0)
    content = dict(
        images=[dict(id=i, file_name=f'{i}.png', width=9, height=9) for i in range(images)],
        annotations=[dict(box, id=i + 1, image_id=i) for i in range(images - boxes, images)],
        categories=[dict(id=1, name='box')],
    )
    # A crowd is no box to be found.
    content['annotations'].append(dict(box, id=images + 1, image_id=0, iscrowd=1))
    return Split('train', folder / 'instances_train.json', folder, content)


@pytest.mark.parametrize(
    ('images', 'boxes', 'held_out', 'held_out_boxes'),
    [(100, 2, 20, 1), (100, 10, 20, 2), (100, 100, 20, 20), (6, 2, 1, 1), (2, 2, 1, 1)],
)
def test_what_is_held_out_has_its_share_of_boxes(tmp_path, images, boxes, held_out, held_out_boxes):
    train, val = split_off_validation(train_split(tmp_path, images, boxes))
    ids = [{image['id'] for image in part.content['images']} for part in (train, val)]
    assert ids[0] | ids[1] == set(range(images)) and not ids[0] & ids[1]
    assert len(ids[1]) == held_out
    assert sum(map(is_scored, val.content['annotations'])) == held_out_boxes
    for part, part_ids in zip((train, val), ids):
        assert {a['image_id'] for a in part.content['annotations']} <= part_ids


def test_one_picture_with_boxes_cannot_be_held_out(tmp_path):
    with pytest.raises(ValueError, match='boxes on one image only.*Annotate more'):
        split_off_validation(train_split(tmp_path, 100, 1))


def test_a_foreign_folder_in_place_of_the_scenes_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('data/demo').mkdir(parents=True)
    with pytest.raises(SystemExit, match='error: data/demo exists and was not made by .*Move it'):
        run_command('demo', [])


def test_a_mistyped_folder_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='error: dta does not exist'):
        run_command('demo', ['--data', 'dta'])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('gone.py', 'config gone.py does not exist'),
        (ROOT / 'README.md', 'a config ends with .py'),
        ('{', 'is not valid Python'),
        ('model = dict()', 'has no train_dataloader, '),
        (
            '_base_ = BASE\n'
            "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=1)",
            'does not count iterations .*IterBasedTrainLoop.* or train with tools/train.py',
        ),
        (
            '_base_ = BASE\ndefault_hooks = dict(checkpoint=dict(by_epoch=True))',
            'writes checkpoints by epoch.*set by_epoch=False',
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_plain_words(
    tmp_path, monkeypatch, config, message
):
    monkeypatch.chdir(tmp_path)
    if '=' in str(config) or config == '{':
        Path('config.py').write_text(config.replace('BASE', repr(str(find_config(CUSTOM_CONFIG)))))
        config = 'config.py'
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        run_command('demo', ['--data', 'data', '--config', str(config)])


def test_options_that_do_not_fit_the_config_are_named():
    options = ['--cfg-options', 'train_cfg.max_iters.x=1']
    with pytest.raises(SystemExit, match='error: .*--cfg-options do not go together: .*max_iters'):
        run_command('demo', ['--data', 'data', *options])


def test_a_config_without_the_clock_gets_it():
    config = read_config(CUSTOM_CONFIG, dict(custom_hooks=[]), Path('work'))
    add_clock(config)
    assert config.custom_hooks == [dict(type='ddetr_plugin.TrainClockHook')]
    config = read_config(CUSTOM_CONFIG, None, Path('work'))
    add_clock(config)
    assert [h.type for h in config.custom_hooks].count('ddetr_plugin.TrainClockHook') == 1


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        ('max_iters', 'give --iters'),
        ('num_queries', r'set it where it is used: model\.query_head\.num_queries$'),
        ('embed_dims', r'used: model\.encoder\.embed_dims, .*, \.\.\.$'),
        ('modle.backbone.pretrained', 'what is read is .*model, '),
        ('work_dir', 'give --work-dir'),
    ],
)
def test_an_override_that_nothing_reads_is_refused(key, message):
    with pytest.raises(ValueError, match=f'{key} would have no effect.*{message}'):
        read_config(CUSTOM_CONFIG, {key: 7}, Path('work'))


@pytest.mark.parametrize('iters', [1, 2, 40, 140, 1400, 2801])
def test_iters_sets_loop_schedule_and_intervals(iters):
    before = read_config(CUSTOM_CONFIG, None, Path('work'))
    config = read_config(CUSTOM_CONFIG, None, Path('work'), iters)
    factor = iters / before.train_cfg.max_iters
    interval = max(1, round(350 * factor))
    warm_up, cosine = config.param_scheduler
    assert config.train_cfg.max_iters == cosine.end == iters
    assert config.train_cfg.val_interval == config.default_hooks.checkpoint.interval == interval
    assert config.default_hooks.logger.interval == min(50, max(1, round(50 * factor)))
    assert (warm_up.begin, warm_up.end) == (0, max(1, round(50 * factor)))
    assert cosine.begin == round(50 * factor) and cosine.T_max == iters - cosine.begin > 0
    if iters == 1400:
        assert config.to_dict() == before.to_dict()
    # The learning rate ends where it does in the whole training.
    weights = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(weights.parameters(), lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(dict(s, optimizer=optimizer)) for s in (warm_up, cosine)]
    for _ in range(iters):
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    if iters > 100:
        assert optimizer.param_groups[0]['lr'] == pytest.approx(0.01, abs=1e-3)


def test_iters_and_max_iters_together_are_refused():
    options = ['--iters', '3', '--cfg-options', 'train_cfg.max_iters=4']
    with pytest.raises(SystemExit, match='--iters and train_cfg.max_iters say the same'):
        run_command('demo', ['--data', 'data', *options])


def test_the_scales_of_all_pipelines_are_checked():
    config = read_config(CUSTOM_CONFIG, None, Path('work'))
    assert set(config_scales(config)) == {(s, s) for s in (320, 352, 384, 416)}
    config = read_config(DEMO_CONFIG, None, Path('work'))
    assert set(config_scales(config)) == {(192, 192)}


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
    options = ['--out', out, '--score-thr', '0']
    result = run_forked('predict', [pictures, config, work_dir / 'iter_4.pth', *options])
    assert result.returncode == 1
    assert 'broken.jpg: not a readable image' in result.stdout
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
        (('nothing-here', 'CONFIG', 'CHECKPOINT'), 'is no file, no folder'),
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
    result = run_forked('predict', [*(names.get(a, a) for a in args), '--out', tmp_path])
    assert result.returncode == 1
    assert message in result.stderr
    assert 'Traceback' not in result.stderr
