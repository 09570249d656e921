"""tools/train.py and tools/test.py from the command line's point of view."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from mask_cases import mask_head_config
from mmengine.runner import Runner
from pycocotools import mask as mask_utils

from ddetr_plugin.apis import launch
from ddetr_plugin.apis.config_reading import load_config
from ddetr_plugin.cli import make_parser, run_command
from ddetr_plugin.cli.train import make_config

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def one_epoch(tiny_job):
    return tiny_job(train_cfg=dict(max_epochs=1, val_begin=2))


def train_config(*arguments):
    args = make_parser('train').parse_args([str(argument) for argument in arguments])
    return make_config(args)


def test_train_test_and_draw_from_the_command_line(one_epoch, tmp_path, capsys):
    work_dir = tmp_path / 'out'
    run_command('train', [str(one_epoch), '--work-dir', str(work_dir)])
    checkpoint = work_dir / 'epoch_1.pth'
    assert checkpoint.is_file()
    results = tmp_path / 'results.pkl'
    common = [str(one_epoch), str(checkpoint), '--work-dir', str(work_dir)]
    # Thresholds of an untrained model: draw everything.
    run_command('test', [*common, '--out', str(results), '--show-dir', 'drawn'])
    assert 'Average Precision' in capsys.readouterr().out
    predictions = pickle.loads(results.read_bytes())
    assert [p['img_id'] for p in predictions] == list(range(1, 9))
    assert predictions[0]['pred_instances']['bboxes'].shape[1] == 4
    assert len(list(work_dir.glob('*/drawn/*.png'))) == 8


def test_test_data_that_pycocotools_cannot_read_is_an_error_in_a_sentence(
    tiny_job, tiny_coco, tmp_path, capsys
):
    file = tmp_path / 'marked.json'
    file.write_text(tiny_coco.annotations.read_text(), encoding='utf-8-sig')
    job = tiny_job(test_dataloader=dict(dataset=dict(ann_file=str(file))))
    (tmp_path / 'weights.pth').touch()
    with pytest.raises(SystemExit):
        run_command('test', [str(job), str(tmp_path / 'weights.pth')])
    said = capsys.readouterr().err
    assert 'marked.json: it begins with a byte-order mark; save it as UTF-8' in said


def test_masks_are_trained_and_evaluated_from_the_command_line(tiny_job, tiny_coco, tmp_path):
    content = json.loads(tiny_coco.annotations.read_text())
    for box in content['annotations']:
        x, y, w, h = box['bbox']
        box['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    file = tmp_path / 'polygons.json'
    file.write_text(json.dumps(content))
    evaluator = dict(type='ddetr_plugin.CocoMetric', ann_file=str(file), metric=['bbox', 'segm'])
    job = tiny_job(
        **{
            'model.backbone.out_indices': (0, 1, 2, 3),
            'model.mask_head': mask_head_config(embed_dims=16, in_channels=[8, 16, 32]),
            'train_dataloader.dataset.ann_file': str(file),
            'train_dataloader.dataset.pipeline.1.with_mask': True,
            'val_evaluator': evaluator,
            'test_evaluator': evaluator,
            'train_cfg.max_epochs': 1,
        }
    )
    work_dir = tmp_path / 'out'
    run_command('train', [str(job), '--work-dir', str(work_dir)])
    results = tmp_path / 'results.pkl'
    common = [str(job), str(work_dir / 'epoch_1.pth'), '--work-dir', str(work_dir)]
    run_command('test', [*common, '--out', str(results), '--show-dir', 'drawn'])
    (scores,) = list(work_dir.glob('*/*.json'))[-1:]
    assert 'coco/segm_mAP' in scores.read_text()
    masks = pickle.loads(results.read_bytes())[0]['pred_instances']['masks']
    assert mask_utils.decode(masks).shape[:2] == (48, 64)
    assert len(list(work_dir.glob('*/drawn/*.png'))) == 8


def test_auto_scale_lr_scales_every_parameter_group_by_the_batch_size(tiny_job):
    mult = dict(custom_keys={'backbone': dict(lr_mult=0.1)})
    path = tiny_job(optim_wrapper=dict(paramwise_cfg=mult))
    config = train_config(path, '--auto-scale-lr')
    runner = Runner.from_cfg(config)
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    # lr 1e-3 for batch 32, here batch 2; the backbone has a tenth.
    rates = {round(group['lr'], 12) for group in wrapper.optimizer.param_groups}
    assert rates == {1e-3 * 2 / 32, 1e-4 * 2 / 32}


def test_auto_scale_lr_without_a_base_batch_size_is_refused(tiny_job):
    path = tiny_job(auto_scale_lr=dict(_delete_=True, enable=False))
    with pytest.raises(ValueError, match='base_batch_size'):
        train_config(path, '--auto-scale-lr')


def test_cfg_options_reach_nested_values_and_lists(tiny_job):
    options = ['--cfg-options', 'train_cfg.max_epochs=7', 'param_scheduler.0.milestones=[3,5]']
    config = train_config(tiny_job(), *options)
    assert config.train_cfg.max_epochs == 7
    assert config.param_scheduler[0].milestones == [3, 5]


def test_the_work_dir_is_the_option_else_the_configs_own_else_named_after_the_config(
    tiny_job, tmp_path
):
    assert train_config(tiny_job(), '--work-dir', 'here').work_dir == 'here'
    assert train_config(tiny_job()).work_dir == str(tmp_path / 'work')
    path = tiny_job('named.py', work_dir=None)
    assert train_config(path).work_dir == 'work_dirs/named'


def test_resume_takes_the_newest_or_the_given_checkpoint(tiny_job, tmp_path):
    newest = train_config(tiny_job(), '--resume')
    assert (newest.resume, newest.load_from) == (True, None)
    file = tmp_path / 'epoch_1.pth'
    file.touch()
    given = train_config(tiny_job(), '--resume', file)
    assert (given.resume, given.load_from) == (True, str(file))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['absent.py'], 'config absent.py does not exist'),
        (['{config}', '--resume', 'absent.pth'], 'checkpoint absent.pth does not exist'),
        (['{config}', '--cfg-options', 'lr'], "takes key=value pairs, got 'lr'"),
        (['{config}', '--launcher', 'ssh'], 'invalid choice'),
        (['{config}', '--no-such-option'], 'unrecognized arguments'),
        ([str(REPO / 'README.md')], 'a config ends with .py'),
        pytest.param(
            ['{config}', '--launcher', 'slurm'],
            'needs GPUs',
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU'),
        ),
    ],
)
def test_a_wrong_command_line_of_train_says_what_is_wrong(tiny_job, capsys, arguments, message):
    config = str(tiny_job())
    with pytest.raises(SystemExit) as stop:
        run_command('train', [argument.format(config=config) for argument in arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'changes', 'message'),
    [
        (['{config}', 'absent.pth'], {}, 'checkpoint absent.pth does not exist'),
        (['{config}', '{file}', '--out', 'x.json'], {}, 'must end with .pkl or .pickle'),
        (
            ['{config}', '{file}', '--show-dir', 'x'],
            {'default_hooks': {'visualization': None}},
            'default_hooks = dict(visualization=',
        ),
    ],
)
def test_a_wrong_command_line_of_test_says_what_is_wrong(
    tiny_job, capsys, arguments, changes, message
):
    config = str(tiny_job(**changes))
    values = dict(config=config, file=config)
    with pytest.raises(SystemExit) as stop:
        run_command('test', [argument.format(**values) for argument in arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_config_handed_to_a_runner_stays_as_it_was(tiny_job):
    config = load_config(tiny_job())
    before = config.pretty_text
    launch.build_runner(config)
    assert config.pretty_text == before


def test_data_workers_share_memory_in_the_way_that_needs_no_third_process(tiny_job):
    """Sharing by name goes through a manager that has to answer within a second.

    On a machine that is too busy for that, a batch would be lost, and the training wait for it
    forever.
    """
    launch.build_runner(load_config(tiny_job()))
    assert torch.multiprocessing.get_sharing_strategy() == 'file_descriptor'


@pytest.mark.skipif(torch.cuda.is_available(), reason='concerns machines without a GPU')
@pytest.mark.parametrize(
    ('launcher', 'message'), [('slurm', 'needs GPUs'), ('pytorch', 'under torchrun only')]
)
def test_a_launcher_that_cannot_work_here_is_refused(tiny_job, monkeypatch, launcher, message):
    monkeypatch.delenv('RANK', raising=False)
    config = load_config(tiny_job(), launcher=launcher)
    with pytest.raises(ValueError, match=message):
        launch.build_runner(config)
