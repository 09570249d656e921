"""Detections depend on the picture, not on its neighbours in a batch, on workers or processes."""

import pickle

import pytest
import torch
from forked import run_tool
from mmengine.config import Config
from mmengine.runner import Runner

from ddetr_plugin.cli import run_command

# Largest differences allowed, on pictures of 64 x 48 pixels. Products of matrices of other sizes
# sum in another order: some 1e-6 of a score, 1e-4 of a pixel.
SCORE, PIXELS = 1e-5, 1e-3


@pytest.fixture
def job(tiny_job, tmp_path):
    """(config file, checkpoint) of a tiny two-stage model that was trained for an epoch."""
    config = tiny_job(train_cfg=dict(max_epochs=1, val_begin=2))
    Runner.from_cfg(Config.fromfile(config)).train()
    return config, tmp_path / 'work' / 'epoch_1.pth'


def detections(results):
    """{picture: (boxes, scores, labels)}, best first, of a file of results."""
    found = {}
    for result in pickle.loads(results.read_bytes()):
        instances = result['pred_instances']
        found[result['img_id']] = [instances[key] for key in ('bboxes', 'scores', 'labels')]
    return found


def assert_the_same(ours, wanted):
    assert ours.keys() == wanted.keys() and len(wanted) == 8
    for picture, (boxes, scores, labels) in wanted.items():
        other_boxes, other_scores, other_labels = ours[picture]
        torch.testing.assert_close(other_scores, scores, rtol=0, atol=SCORE)
        # Where scores are nearly the same, their order is a matter of chance.
        apart = (scores[:-1] - scores[1:]).abs() > 2 * SCORE
        sure = torch.ones(len(scores), dtype=torch.bool)
        sure[1:] &= apart
        sure[:-1] &= apart
        assert sure.float().mean() > 0.5
        assert torch.equal(other_labels[sure], labels[sure])
        torch.testing.assert_close(other_boxes[sure], boxes[sure], rtol=0, atol=PIXELS)


def test_detections_do_not_depend_on_batch_order_workers_or_processes(job, tmp_path):
    config, checkpoint = job

    def arguments(name, *options):
        results = tmp_path / f'{name}.pkl'
        common = [str(config), str(checkpoint), '--work-dir', str(tmp_path / name)]
        return results, [*common, '--out', str(results), '--cfg-options', *options]

    def tested(name, *options):
        results, given = arguments(name, *options, f'experiment_name={name}')
        run_command('test', given)
        return detections(results)

    wanted = tested('one', 'test_dataloader.batch_size=1')
    for size in (3, 8):
        assert_the_same(tested(f'by_{size}', f'test_dataloader.batch_size={size}'), wanted)
    shuffled = tested(
        'shuffled', 'test_dataloader.sampler.shuffle=True', 'test_dataloader.batch_size=3'
    )
    assert list(shuffled) != list(wanted)
    assert_the_same(shuffled, wanted)
    assert_the_same(tested('workers', 'test_dataloader.num_workers=3'), wanted)
    results, given = arguments('processes', 'test_dataloader.batch_size=2')
    run_tool('test', 3, given)
    assert_the_same(detections(results), wanted)
