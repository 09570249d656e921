"""A training that cannot be resumed says why in one message; nothing is resumed by halves."""

import pytest
import torch

from ddetr_plugin.cli import run_command


def test_a_checkpoint_that_does_not_fit_is_refused_with_one_message(tiny_job, tmp_path, capsys):
    config = tiny_job(train_cfg=dict(max_epochs=1))
    run_command('train', [str(config)])
    whole = tmp_path / 'work' / 'epoch_1.pth'
    (best,) = whole.parent.glob('best_*.pth')
    content = torch.load(whole)
    files = {name: tmp_path / f'{name}.pth' for name in ('weights', 'model', 'torn', 'text')}
    torch.save(dict(state_dict=content['state_dict']), files['weights'])
    torch.save(dict(content, state_dict={'backbone.other': torch.ones(1)}), files['model'])
    files['torn'].write_bytes(whole.read_bytes()[:-100])
    files['text'].write_text('no checkpoint')
    groups = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult=0.1'
    cases = [
        (files['weights'], [], 'not a checkpoint of a training with mmengine (it has no epoch, '),
        (files['model'], [], 'it is of another model: '),
        (files['torn'], [], 'the newest complete one is'),
        (files['text'], [], 'cannot resume from'),
        (best, [], "saved without the optimiser's state"),
        (whole, ['model.bbox_head.num_classes=4'], 'instead of (4, 16)'),
        (whole, ['optim_wrapper.optimizer.type=SGD'], 'an optimiser of another kind than SGD'),
        (whole, [groups], 'its optimiser has 1 groups of parameters, here there are '),
    ]
    for i, (path, options, message) in enumerate(cases):
        folder = tmp_path / f'resumed_{i}'
        if path == files['torn']:
            # Beside it there is a complete one.
            path = path.rename(whole.with_name('epoch_2.pth'))
        arguments = [str(config), '--work-dir', str(folder), '--resume', str(path)]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command('train', [*arguments, '--cfg-options', f'experiment_name={i}', *options])
        assert stop.value.code == 1
        errors = capsys.readouterr().err
        assert message in errors, errors
        assert f'error: cannot resume from {path}: ' in errors
        assert 'Traceback' not in errors
        assert not list(folder.glob('*.pth'))
