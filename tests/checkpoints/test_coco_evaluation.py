"""The documented COCO command, from an official file to COCO's metric, with random weights."""

import argparse
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from bridge_cases import bridge_config
from builders import build
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope

from ddetr_plugin.checkpoints import export
from ddetr_plugin.checkpoints.class_rows.rows import COCO_GAPS
from ddetr_plugin.cli import run_command
from ddetr_plugin.config_files import find_config

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / 'shared' / 'data' / 'coco_sample'
PICTURES = 6
OFFICIAL = 'deformable-detr_r50_official-eval_coco.py'


@pytest.fixture
def truth():
    return json.loads((DATA / 'annotations' / 'instances_val.json').read_text())


def official_model(kind):
    """With the official 91 rows, of which those that stand for no category never fire."""
    model = build(bridge_config(kind, 91))
    with torch.no_grad():
        for branch in model.bbox_head.cls_branches:
            branch.bias[list(COCO_GAPS)] = -20.0
    return model


def write_config(folder, kind):
    """The official evaluation of a small model on small pictures, to be quick."""
    config = Config.fromfile(find_config(OFFICIAL))
    config.model = bridge_config(kind, 80)
    config.test_dataloader.dataset.pipeline[1].scale = (160, 128)
    config.test_dataloader.update(num_workers=0, persistent_workers=False)
    config.test_dataloader.dataset.update(
        data_root=str(DATA),
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/'),
        indices=PICTURES,
    )
    config.test_evaluator.ann_file = str(DATA / 'annotations' / 'instances_val.json')
    config.test_evaluator.outfile_prefix = str(folder / 'found')
    config.dump(folder / 'config.py')
    return config


@pytest.mark.skipif(not DATA.exists(), reason='the data sets are not part of the project')
@pytest.mark.parametrize('kind', ['base', 'two-stage'])
def test_an_official_file_is_evaluated_on_real_coco_annotations(tmp_path, kind, capsys, truth):
    """Crowd boxes and category ids with gaps included.

    Of the official model a row is a category id: what is found must be what it finds.
    """
    seen = [picture['id'] for picture in truth['images'][:PICTURES]]
    assert any(a['iscrowd'] for a in truth['annotations'] if a['image_id'] in seen)
    ids = {category['id'] for category in truth['categories']}
    assert (len(ids), max(ids)) == (80, 90)

    config = write_config(tmp_path, kind)
    model = official_model(kind)
    content = {
        'model': export(model.state_dict(), 'official'),
        'args': argparse.Namespace(dilation=False),
    }
    torch.save(content, tmp_path / 'official.pth')
    run_command(
        'test',
        [str(tmp_path / name) for name in ('config.py', 'official.pth')]
        + ['--work-dir', str(tmp_path)],
    )
    assert 'maxDets=100 ]' in capsys.readouterr().out

    found = json.loads((tmp_path / 'found.bbox.json').read_text())
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    model.eval()
    compared = set()
    for i, image_id in enumerate(seen):
        with torch.no_grad():
            (sample,) = model.test_step(pseudo_collate([dataset[i]]))
        wanted, mine = sample.pred_instances, [f for f in found if f['image_id'] == image_id]
        assert [f['category_id'] for f in mine] == wanted.labels.tolist()
        assert [f['score'] for f in mine] == pytest.approx(wanted.scores.tolist(), rel=1e-4)
        boxes = np.array([f['bbox'] for f in mine])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, wanted.bboxes, rtol=1e-3, atol=0.05)
        compared.update(wanted.labels.tolist())
    assert len(found) == PICTURES * model.bbox_head.max_per_img
    assert compared <= ids
    assert len(compared) > 5


@pytest.mark.parametrize(
    'variant',
    [
        'deformable-detr_r50',
        'deformable-detr-refine_r50',
        'deformable-detr-refine-twostage_r50',
        'deformable-detr_r50-single-scale',
        'deformable-detr_r50-dc5-single-scale',
    ],
)
def test_the_documented_options_evaluate_every_variant_as_the_official_config_does(variant):
    """The page on evaluation gives them; they must lead to the same pipeline and metric."""
    text = (ROOT / 'docs' / 'evaluation.md').read_text()
    (options,) = re.findall(r'--cfg-options (test_dataloader.*)', text)
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    changes = parser.parse_args(['--cfg-options', *shlex.split(options)]).cfg_options
    config = Config.fromfile(find_config(f'{variant}_16xb2-50e_coco'))
    official = Config.fromfile(find_config(OFFICIAL))
    config.merge_from_dict(changes)
    with DefaultScope.overwrite_default_scope('mmdet'):
        from mmdet.registry import TRANSFORMS

        pipelines = [
            [repr(TRANSFORMS.build(step)) for step in c.test_dataloader.dataset.pipeline]
            for c in (config, official)
        ]
    assert pipelines[0] == pipelines[1]
    assert any(step.startswith('OfficialResize') for step in pipelines[0])
    assert tuple(config.test_evaluator.proposal_nums) == official.test_evaluator.proposal_nums
