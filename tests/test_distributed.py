"""Two processes train as one process with twice the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

REPO = Path(__file__).resolve().parents[1]

# A hook for the config under test: every process writes its losses of every step to a file.
RECORDER = """
import json
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class LossRecorder(Hook):
    def __init__(self, folder):
        self.folder = folder

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        line = {name: float(value) for name, value in outputs.items()}
        with open(f'{self.folder}/{runner.rank}.jsonl', 'a') as file:
            file.write(json.dumps(line) + '\\n')
"""


def train(config, folder, processes, batch_size):
    """Run tools/train.py; return per process the list of loss dicts, and the final weights."""
    folder.mkdir()
    command = [sys.executable, 'tools/train.py', str(config)]
    launcher = []
    if processes > 1:
        module = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
        command[1:1] = module
        launcher = ['--launcher', 'pytorch']
    options = [f'train_dataloader.batch_size={batch_size}', f'custom_hooks.0.folder={folder}']
    command += ['--work-dir', str(folder), *launcher, '--cfg-options', *options]
    paths = [str(config.parent), str(REPO), os.environ.get('PYTHONPATH', '')]
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        'OMP_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '-1',
    }
    done = subprocess.run(
        command, cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = []
    for rank in range(processes):
        lines = (folder / f'{rank}.jsonl').read_text().splitlines()
        losses.append([json.loads(line) for line in lines])
    return losses, torch.load(folder / 'epoch_2.pth')['state_dict']


WRAPPER = Config.fromfile(REPO / 'configs/_base_/default_runtime.py').model_wrapper_cfg


@pytest.mark.parametrize('wrapper', [{}, WRAPPER], ids=['plain', 'of the configs'])
def test_two_gloo_processes_give_the_losses_of_one_with_twice_the_batch(
    tiny_job, tmp_path, wrapper
):
    (tmp_path / 'loss_recorder.py').write_text(RECORDER)
    config = tiny_job(
        model_wrapper_cfg=wrapper,
        custom_imports=dict(imports=['ddetr_plugin', 'loss_recorder']),
        custom_hooks=[dict(type='LossRecorder', folder='')],
        train_cfg=dict(max_epochs=2, val_begin=3),
        # What would differ by construction: statistics of half a batch, random numbers of two
        # processes.
        model=dict(
            backbone=dict(norm_eval=True),
            encoder=dict(layer=dict(dropout=0.0, ffn=dict(ffn_drop=0.0))),
            decoder=dict(
                layer=dict(dropout=0.0, ffn=dict(ffn_drop=0.0), self_attn=dict(dropout=0.0))
            ),
        ),
        optim_wrapper=dict(
            optimizer=dict(_delete_=True, type='SGD', lr=1e-2), clip_grad=dict(max_norm=1.0)
        ),
        **{'train_dataloader.dataset.pipeline.3.prob': 0.0},
    )
    (one,), weights_of_one = train(config, tmp_path / 'one', 1, batch_size=4)
    two, weights_of_two = train(config, tmp_path / 'two', 2, batch_size=2)
    assert len(one) == len(two[0]) == len(two[1]) == 4
    for step, (whole, *halves) in enumerate(zip(one, *two, strict=True)):
        for name, value in whole.items():
            # Each process divides by the mean number of boxes per process, so the mean of the
            # processes is the loss of the whole batch. float32 sums in another order (about
            # 1e-7), and steps carry the difference on: 1e-5.
            mean = sum(half[name] for half in halves) / 2
            assert mean == pytest.approx(value, rel=1e-5), (step, name)
    for name, weight in weights_of_one.items():
        torch.testing.assert_close(weights_of_two[name], weight, rtol=1e-4, atol=1e-6, msg=name)
