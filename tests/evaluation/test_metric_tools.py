"""The metrics in configs, tools and several processes."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_cases import ordinary, score, write_truth
from forked import run_tool
from mmengine.config import Config
from mmengine.runner import Runner

from ddetr_plugin.apis.drawing import draw_pairs
from ddetr_plugin.cli import run_command
from ddetr_plugin.config_files import config_files
from ddetr_plugin.data_checks import Split
from ddetr_plugin.registry import METRICS

REPO = Path(__file__).resolve().parents[2]
CONFIGS = list(config_files().values())


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_evaluated_by_our_metrics(path):
    config = Config.fromfile(path)
    for split in ('val', 'test'):
        evaluator = config[f'{split}_evaluator']
        assert evaluator.type.startswith('ddetr_plugin.')
        assert METRICS.get(evaluator.type).__module__.startswith('ddetr_plugin.evaluation.')


def test_several_processes_score_as_one(tmp_path):
    annotations, samples = ordinary(images=7)
    categories = ((1, 'person'), (2, 'car'), (3, 'dog'))
    file = write_truth(tmp_path / 'truth.json', annotations, categories, images=7)
    run_tool('tests.evaluation.evaluation_cases', 2, [file, tmp_path], REPO / 'tests')
    alone = score(file, samples, ('person', 'car', 'dog'), metric=['bbox', 'segm'], classwise=True)
    for rank in range(2):
        together = json.loads((tmp_path / f'{rank}.json').read_text())
        assert together == {f'coco/{name}': value for name, value in alone.items()}
    assert 0 < alone['bbox_mAP'] < 1


@pytest.fixture
def broken(tiny_job, tmp_path):
    """A config, and a checkpoint whose boxes are all NaN."""
    path = tiny_job()
    runner = Runner.from_cfg(Config.fromfile(path))
    state = runner.model.state_dict()
    for name in state:
        if name.startswith('bbox_head.reg_branches'):
            state[name] = torch.full_like(state[name], torch.nan)
    checkpoint = tmp_path / 'broken.pth'
    torch.save(dict(state_dict=state, meta={}), checkpoint)
    return str(path), str(checkpoint), '--work-dir', str(tmp_path / 'out')


def test_boxes_of_nan_end_a_test_with_image_and_query(broken, capsys):
    with pytest.raises(SystemExit) as end:
        run_command('test', list(broken))
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert 'the box of query ' in message and '01.png' in message and 'not finite' in message


def test_a_config_that_names_mmdets_metric_gets_it(broken, tmp_path, capsys):
    """With its faults: to it, boxes of NaN are hits."""
    run_command('test', [*broken, '--cfg-options', 'test_evaluator.type=CocoMetric'])
    (scores,) = (tmp_path / 'out').glob('*/*.json')
    assert json.loads(scores.read_text())['coco/bbox_mAP'] > 0


def test_detections_that_are_not_finite_are_not_drawn(tmp_path):
    content = dict(images=[], annotations=[], categories=[dict(id=1, name='person')])
    split = Split('val', tmp_path / 'val.json', tmp_path, content)
    file = tmp_path / 'val.bbox.json'
    row = dict(image_id=3, category_id=1, bbox=[1, 2, float('nan'), 4], score=0.9)
    file.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match='on image 3, is not finite'):
        draw_pairs(split, file, tmp_path)
