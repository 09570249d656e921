"""The comparison of detectors: alike in all but the method, resumable, and honestly drawn."""

import json
import types
from pathlib import Path

import cv2
import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from benchmarks.batches import random_batch
from benchmarks.convergence import models
from benchmarks.convergence import run as convergence
from ddetr_plugin.apis.configs import find_config
from ddetr_plugin.apis.own_data import DEMO_CONFIG
from ddetr_plugin.models.backbones.efficientnet_lite import DilatedEfficientNetLite0
from ddetr_plugin.registry import MODELS


@pytest.fixture
def folder(tiny_coco, tmp_path):
    """`tiny_coco` as a data set for trainings, all of it in both splits."""
    root = tmp_path / 'data'
    (root / 'annotations').mkdir(parents=True)
    (root / 'images').symlink_to(tiny_coco.images)
    for split in ('train', 'val'):
        file = root / 'annotations' / f'instances_{split}.json'
        file.write_text(tiny_coco.annotations.read_text())
    return root


@pytest.mark.parametrize('name', models.MODELS)
def test_every_model_has_the_demos_backbone_width_depth_and_gives_losses(name):
    register_all_modules(init_default_scope=False)
    demo = Config.fromfile(find_config(DEMO_CONFIG)).model
    before = demo.to_dict()
    config = models.make_model(name, demo, 3, 7)
    assert demo.to_dict() == before
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(ConfigDict(config))
    assert isinstance(model.backbone, MODELS.get(demo.backbone.type))
    assert len(model.encoder.layers) == demo.encoder.num_layers
    assert len(model.decoder.layers) == demo.decoder.num_layers
    inputs, samples = random_batch(2, 64, 96, 'cpu', num_classes=3, objects=2)
    with DefaultScope.overwrite_default_scope('mmdet'):
        total, _ = model.parse_losses(model.loss(inputs, samples))
    assert torch.isfinite(total)
    model.eval()
    with torch.no_grad(), DefaultScope.overwrite_default_scope('mmdet'):
        (first, _) = model.predict(inputs, samples)
    assert 0 < len(first.pred_instances) <= 7 * 3


def test_a_dilated_backbone_has_twice_the_cells_and_the_same_taps():
    plain = MODELS.get('ddetr_plugin.EfficientNetLite0')(out_indices=(5,)).eval()
    dilated = DilatedEfficientNetLite0().eval()
    dilated.load_state_dict(plain.state_dict())
    with torch.no_grad():
        (coarse,), (fine,) = (net(torch.randn(1, 3, 96, 128)) for net in (plain, dilated))
    assert fine.shape == (1, 320, 6, 8) and coarse.shape == (1, 320, 3, 4)
    # Of one and the same map: every second cell sees what the strided stage sees.
    maps = torch.randn(1, 112, 12, 16)
    with torch.no_grad():
        coarse, fine = plain.layers[5](maps), dilated.layers[5](maps)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match='must end with stage 5'):
        DilatedEfficientNetLite0(out_indices=(3, 4))


class Trainer:
    """Stands in for the process of a training: logs two validations, leaves a checkpoint."""

    def __init__(self):
        self.folders = []

    def __call__(self, command, **_):
        folder = Path(command[command.index('--work-dir') + 1])
        self.folders.append(folder)
        log = folder / 'now' / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        file = Path(command[command.index('--work-dir') - 1])
        config = Config.fromfile(file)
        steps = config.train_cfg.max_iters
        # As the Runner does.
        Config(dict(config, work_dir=str(folder))).dump(folder / file.name)
        entries = [
            {'coco/bbox_mAP': step / 100, 'coco/bbox_mAP_s': -1.0, 'step': step}
            for step in (steps // 2, steps)
        ]
        log.write_text('\n'.join(map(json.dumps, entries)))
        (folder / 'iter.pth').write_bytes(b'')
        return types.SimpleNamespace(returncode=0)


def test_finished_trainings_are_not_repeated_and_others_are_refused(
    folder, tmp_path, monkeypatch, capsys
):
    trainer = Trainer()
    monkeypatch.setattr(convergence.subprocess, 'run', trainer)
    monkeypatch.setattr(convergence, 'environment', lambda device: {})
    out = tmp_path / 'out'
    arguments = ['--out', str(out), '--data', str(folder), '--models', 'detr', 'deformable']
    arguments += ['--steps', '8', '--image-size', '64']
    convergence.main([*arguments, '--seeds', '1'])
    assert len(trainer.folders) == 2
    convergence.main([*arguments, '--seeds', '2'])
    assert [f.name for f in trainer.folders] == ['seed_0', 'seed_0', 'seed_1', 'seed_1']
    left = {path.name for path in trainer.folders[0].rglob('*') if path.is_file()}
    assert left == {'scalars.json', convergence.DONE}
    one, other = (Config.fromfile(f.with_suffix('.py')) for f in trainer.folders[1:3])
    assert (one.randomness.seed, other.randomness.seed) == (0, 1)
    for key in ('train_dataloader', 'optim_wrapper', 'param_scheduler', 'train_cfg'):
        assert one[key] == other[key]

    content = json.loads((out / 'convergence.json').read_text())
    # 4 of 8 pictures a step.
    assert [point[0] for point in content['curves']['detr'][0]] == [2.0, 4.0]
    # AP of objects that the data do not have is a dash.
    table = (out / 'table.md').read_text()
    assert '| AP after 50% | AP after 100% | AP_S after 50% |' in table
    assert '| detr | 2 | 4.0 (4.0 to 4.0) | 8.0 (8.0 to 8.0) | – | – |' in table
    assert cv2.imread(str(out / 'convergence.png')) is not None

    with pytest.raises(SystemExit, match='holds a training with other settings'):
        convergence.main([*arguments, '--lr', '0.1'])
    with pytest.raises(SystemExit):
        convergence.main([*arguments, '--seeds', '0'])
    assert '--seeds must be at least 1' in capsys.readouterr().err


def test_the_table_says_where_in_the_training_its_validations_were():
    """Five validations: none is at a quarter or a half."""
    runs = [[(0.24 * i, {'mAP': i / 10}) for i in range(1, 6)] for _ in range(3)]
    title, _, row = convergence.markdown({'detr': runs}).splitlines()
    assert title.split(' | ')[2:5] == ['AP after 20%', 'AP after 40%', 'AP after 100%']
    assert row.split(' | ')[2:5] == [
        '10.0 (10.0 to 10.0)',
        '20.0 (20.0 to 20.0)',
        '50.0 (50.0 to 50.0)',
    ]


def test_a_training_that_fails_stops_the_comparison_and_is_tried_again(tmp_path, monkeypatch):
    config = Config(dict(a=1))
    failing = lambda *_, **__: types.SimpleNamespace(returncode=1)  # noqa: E731
    monkeypatch.setattr(convergence.subprocess, 'run', failing)
    with pytest.raises(SystemExit, match='output.txt says why'):
        convergence.train_once(config, tmp_path / 'run')
    monkeypatch.setattr(
        convergence.subprocess, 'run', lambda *_, **__: types.SimpleNamespace(returncode=0)
    )
    convergence.train_once(config, tmp_path / 'run')
    assert (tmp_path / 'run' / convergence.DONE).exists()
