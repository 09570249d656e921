"""mmdet's own tools run on configs and loaders of this package, with mmcv-lite, too."""

import sys

import ddetr_plugin  # noqa: F401  before mmdet

# isort: split
import mmdet.datasets
import pytest
from mmdet.apis import DetInferencer
from mmengine.config import Config

from ddetr_plugin import mmdet_tool
from ddetr_plugin.cli import run_command
from ddetr_plugin.datasets import LoadImageResized, with_mmdet_loaders

CHECKED = dict(
    type='ddetr_plugin.LoadImageChecked', load=dict(type='LoadImageFromFile'), max_broken=2
)
LOADED = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a tool changes of its process is undone."""
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    for holder in (mmdet.datasets, mmdet.datasets.utils):
        monkeypatch.setattr(holder, 'get_loading_pipeline', holder.get_loading_pipeline)
    monkeypatch.setattr(DetInferencer, '_init_pipeline', DetInferencer._init_pipeline)


def test_pipelines_get_the_loaders_of_mmdet():
    resized = dict(type=LoadImageResized, scale=(64, 48), keep_ratio=True)
    flip = dict(type='RandomFlip', prob=0.5)
    assert with_mmdet_loaders([CHECKED, LOADED[1], resized, flip]) == [
        *LOADED,
        dict(type='LoadImageFromFile', backend_args=None),
        dict(type='Resize', scale=(64, 48), keep_ratio=True),
        flip,
    ]


def test_mmdet_does_not_recognise_our_loader_by_itself():
    """If this fails, mmdet has become able to do what `recognise_loaders` is for."""
    with pytest.raises(AssertionError, match='must include'):
        mmdet.datasets.get_loading_pipeline([CHECKED, LOADED[1]])
    mmdet_tool.recognise_loaders()
    assert mmdet.datasets.get_loading_pipeline([CHECKED, LOADED[1]]) == LOADED


def test_tools_run_by_name_and_by_path(tiny_job, tmp_path, capsys):
    config = Config.fromfile(tiny_job(train_cfg=dict(max_epochs=1)))
    config.train_dataloader.dataset.pipeline[0] = CHECKED
    config.test_dataloader.dataset.pipeline[0] = dict(CHECKED, max_broken=0)
    path, predictions = str(tmp_path / 'checked.py'), tmp_path / 'predictions.pkl'
    config.dump(path)
    mmdet_tool.main(['print_config', path])
    assert 'ddetr_plugin.LoadImageChecked' in capsys.readouterr().out
    run_command('train', [path])
    weights = str(tmp_path / 'work' / 'epoch_1.pth')
    mmdet_tool.main(
        [str(mmdet_tool.find_tool('test.py')), path, weights, '--out', str(predictions)]
    )
    assert predictions.is_file()
    mmdet_tool.main(
        ['analysis_tools/analyze_results.py', path, str(predictions), str(tmp_path / 'shown')]
        + ['--topk', '2']
    )
    assert {file.name.split('_')[0] for file in (tmp_path / 'shown').rglob('*.png')} <= {
        f'{i:02d}' for i in range(1, 9)
    }
    assert len(list((tmp_path / 'shown' / 'good').iterdir())) == 2
    capsys.readouterr()
    inferencer = DetInferencer(Config.fromfile(path), weights, device='cpu')
    image = config.test_dataloader.dataset.data_prefix.img + '/01.png'
    result = inferencer(image, no_save_vis=True)['predictions'][0]
    assert len(result['bboxes']) == len(result['scores']) > 0


def test_a_tool_that_does_not_exist_is_refused_with_the_names_of_all(capsys):
    with pytest.raises(SystemExit, match='analyze_results'):
        mmdet_tool.main(['analyse_results'])
    mmdet_tool.main([])
    assert {'analyze_logs', 'get_flops', 'print_config'} < {*capsys.readouterr().out.split()}
