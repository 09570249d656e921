"""The comparison of a demo in mixed precision with one in float32."""

import amp_accuracy
import pytest
import torch
from demo import CONFIGS, read_config
from mmengine.config import DictAction


def metrics(*maps):
    names = ('float32', 'bfloat16')
    return {name: dict(bbox_mAP=x, train_seconds=60.0) for name, x in zip(names, maps)}


@pytest.mark.parametrize(
    ('low', 'near'), [(0.62, True), (0.605, True), (0.64, True), (0.59, False), (0.65, False)]
)
def test_an_accuracy_further_away_than_two_hundredths_fails(low, near, capsys):
    assert amp_accuracy.compare(metrics(0.62, low)) == near
    assert f'| bfloat16 | {low:.3f} | {low - 0.62:+.3f} | 1.0 min |' in capsys.readouterr().out


def test_the_first_training_is_in_float32_and_the_second_under_autocast(tmp_path):
    kinds = []
    for name in amp_accuracy.precisions()[:2]:
        pairs = [x.split('=') for x in amp_accuracy.OPTIONS[name] if '=' in x]
        overrides = {key: DictAction._parse_int_float_bool(value) for key, value in pairs}
        path = CONFIGS / 'deformable-detr-refine-twostage_effnet-lite0_demo.py'
        kinds.append(read_config(path, overrides, tmp_path).optim_wrapper.type)
    assert kinds == ['OptimWrapper', 'ddetr_plugin.AutocastOptimWrapper']
    assert ('float16' in amp_accuracy.precisions()) == torch.cuda.is_available()


def test_trainings_that_fail_end_the_comparison(monkeypatch, tmp_path):
    monkeypatch.setattr(amp_accuracy, 'TOOLS', tmp_path)  # without demo.py
    with pytest.raises(SystemExit) as stopped:
        amp_accuracy.main(['--work-dir', str(tmp_path)])
    assert stopped.value.code == 2
