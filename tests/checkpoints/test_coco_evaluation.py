"""The documented COCO command, from an official file to COCO's metric, with random weights."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from bridge_cases import bridge_config
from builders import build
from mmengine.config import Config
from test_tools import tool

from ddetr_plugin.checkpoints import export

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / 'shared' / 'data' / 'coco_sample'
PICTURES = 6


@pytest.mark.skipif(not DATA.exists(), reason='the data sets are not part of the project')
@pytest.mark.parametrize('kind', ['base', 'two-stage'])
def test_an_official_file_is_evaluated_on_real_coco_annotations(tmp_path, kind, capsys):
    """Crowd boxes and category ids with gaps included; small pictures, to be quick."""
    truth = json.loads((DATA / 'annotations' / 'instances_val.json').read_text())
    assert any(entry['iscrowd'] for entry in truth['annotations'])
    ids = [category['id'] for category in truth['categories']]
    assert (len(ids), max(ids)) == (80, 90)

    config = Config.fromfile(ROOT / 'configs' / 'deformable-detr_r50_official-eval_coco.py')
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
    config.test_evaluator.outfile_prefix = str(tmp_path / 'found')
    config.dump(tmp_path / 'config.py')

    state = export(build(bridge_config(kind, 91)).state_dict(), 'official')
    content = {'model': state, 'args': argparse.Namespace(dilation=False)}
    torch.save(content, tmp_path / 'official.pth')
    tool('test').main(
        [str(tmp_path / name) for name in ('config.py', 'official.pth')]
        + ['--work-dir', str(tmp_path)]
    )
    assert 'maxDets=100 ]' in capsys.readouterr().out
    found = json.loads((tmp_path / 'found.bbox.json').read_text())
    # At most 100 a picture; each of a category that COCO has.
    assert 0 < len(found) <= PICTURES * 100
    assert {entry['category_id'] for entry in found} <= set(ids)
