"""A NaN or an infinity ends the step with the name of its tensor, and the batch on the disk."""

import math
from collections import Counter
from types import SimpleNamespace

import cv2
import pytest
import torch
from builders import VARIANTS, batch, build, tiny_config
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from transfers import count_transfers

from ddetr_plugin.engine import AutocastOptimWrapper, BadNumberHook
from ddetr_plugin.engine.hooks.first_bad import first_bad_output
from ddetr_plugin.engine.hooks.random_state import capture_random_state
from ddetr_plugin.models.losses.assigner import NotFiniteError

HOOK = dict(type='ddetr_plugin.BadNumberHook')


def runner_of(tiny_job, hooks=(HOOK,), **changes):
    """One epoch of four steps, without validation."""
    path = tiny_job(train_cfg=dict(max_epochs=1, val_begin=2), custom_hooks=list(hooks), **changes)
    return Runner.from_cfg(Config.fromfile(path))


class At(Hook):
    """Calls a function before one of the steps, and notes the weights that it finds."""

    def __init__(self, iteration, spoil):
        self.iteration, self.spoil = iteration, spoil

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            self.spoil(runner.model)
        self.before = {k: v.clone() for k, v in runner.model.state_dict().items()}


def spoil_weight(model):
    model.encoder.layers[0].norms[1].weight.data[3] = math.inf


def spoil_output(model):
    ffn = model.encoder.layers[0].ffn
    ffn.register_forward_hook(lambda module, arguments, output: output * math.nan)


def spoil_inputs(model):
    model.data_preprocessor.std.zero_()


def spoil_loss(model):
    loss = model.criterion.loss_iou
    loss.register_forward_hook(lambda module, arguments, output: output * math.nan)


def spoil_gradient(model):
    model.neck.convs[0].conv.weight.register_hook(lambda gradient: gradient * math.inf)


SPOILT = {
    'weight encoder.layers.0.norms.1.weight': spoil_weight,
    'output of encoder.layers.0.ffn': spoil_output,
    'input picture 0 of the batch': spoil_inputs,
    'loss d0.loss_iou': spoil_loss,
    'gradient of neck.convs.0.conv.weight': spoil_gradient,
}


@pytest.mark.parametrize('name', SPOILT)
def test_the_first_bad_tensor_is_named_and_no_weight_is_lost(tiny_job, tmp_path, name):
    runner = runner_of(tiny_job)
    at = At(2, SPOILT[name])
    runner.register_hook(at)
    with pytest.raises(
        NotFiniteError, match=f'Iteration 3 .*The first bad tensor: {name}'
    ) as error:
        runner.train()
    folder = tmp_path / 'work' / 'bad_batch_iter_3'
    saved = torch.load(folder / 'batch.pth', weights_only=True)
    assert saved['iter'] == 3
    assert (folder / 'report.txt').read_text().strip() == saved['report'] == str(error.value)
    for i, picture in enumerate(saved['pictures']):
        path = picture['metainfo']['img_path']
        assert path in str(error.value)
        as_loaded = cv2.imread(path).transpose(2, 0, 1)
        network_got = picture['inputs'].numpy()
        assert (network_got == as_loaded).all() or (network_got == as_loaded[..., ::-1]).all()
        assert len(picture['bboxes']) == len(picture['labels']) > 0
        assert cv2.imread(str(folder / f'picture_{i}.png')).shape == (48, 64, 3)
    assert len(saved['pictures']) == 2
    for key, value in runner.model.named_parameters():
        assert torch.equal(value, at.before[key]), key
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_without_clipping_a_bad_loss_stops_before_a_checkpoint_is_written(tiny_job, tmp_path):
    # The last step, after which a checkpoint would follow.
    runner = runner_of(tiny_job, optim_wrapper=dict(clip_grad=None))
    runner.register_hook(At(3, spoil_loss))
    with pytest.raises(NotFiniteError, match='The first bad tensor'):
        runner.train()
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.mark.parametrize('variant', VARIANTS)
def test_no_module_of_a_healthy_model_has_a_bad_output(variant):
    """With padding: nothing marks padded tokens by infinities that would be mistaken."""
    model = build(tiny_config(variant)).train()
    inputs, samples = batch()
    data = dict(inputs=inputs, data_samples=samples)
    assert first_bad_output(model, data, capture_random_state()) is None


def test_watching_changes_no_number_and_adds_no_transfer(tiny_job, tmp_path):
    results = []
    # The first run is to be warm: some numbers are read once in a process.
    for hooks in ([], [], [HOOK]):
        runner = runner_of(tiny_job, hooks, experiment_name=f'watched {len(results)}')
        with count_transfers() as transfers:
            runner.train()
        results.append((Counter(transfers), runner.model.state_dict()))
    _, (count, weights), (watched_count, watched_weights) = results
    assert watched_count == count
    for key, value in weights.items():
        assert torch.equal(value, watched_weights[key]), key


class ScaledWrapper(AutocastOptimWrapper):
    """Scales gradients as in float16, without its products, which are slow on a CPU."""

    def __init__(self, optimizer, **settings):
        super().__init__(optimizer, dtype='float16', **settings)

    def optim_context(self, model):
        return OptimWrapper.optim_context(self, model)


def scaled_runner(tiny_job, spoil, iteration=2, **settings):
    runner = runner_of(tiny_job, hooks=[])
    optimizer = torch.optim.SGD(runner.model.parameters(), lr=1e-5)
    runner.optim_wrapper = ScaledWrapper(optimizer, **settings)
    runner.param_schedulers = None
    runner.register_hook(At(iteration, spoil))
    return runner


def overflow_gradients(model):
    weight = model.neck.convs[0].conv.weight
    weight.register_hook(lambda gradient: gradient * math.inf)


def overflow_forward(model):
    """Bad only under autocast, as an activation beyond 65504 is in float16."""
    ffn = model.encoder.layers[0].ffn

    def overflow(module, arguments, output):
        return output * (math.inf if torch.is_autocast_enabled('cpu') else 1)

    ffn.register_forward_hook(overflow)


def test_gradients_that_overflow_under_a_scaler_are_no_error(tiny_job):
    runner = scaled_runner(tiny_job, overflow_gradients)
    runner.register_hook(BadNumberHook())
    runner.train()
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**14


def test_a_forward_pass_that_overflows_under_a_scaler_is_left_out_so_many_times(tiny_job):
    runner = scaled_runner(tiny_job, overflow_forward)
    runner.optim_wrapper.optim_context = lambda model: torch.autocast('cpu', torch.bfloat16)
    runner.register_hook(BadNumberHook(max_overflows=1))
    with pytest.raises(NotFiniteError, match='Iteration 4 .*output of encoder.layers.0.ffn'):
        runner.train()


@pytest.mark.parametrize('hooks', [[], [BadNumberHook()]], ids=['without', 'with the hook'])
def test_statistics_of_batch_norms_do_not_keep_what_has_overflowed(tiny_job, hooks):
    """The scaler leaves out the step, but a running mean of infinity stays one for ever."""

    def overflow_once(model):
        def overflow(module, arguments, output):
            handle.remove()
            return output * math.inf

        handle = model.backbone.conv1.register_forward_hook(overflow)

    runner = scaled_runner(tiny_job, overflow_once)
    # The matching would complain first, and is told apart elsewhere.
    runner.optim_wrapper.optim_context = lambda model: torch.autocast('cpu', torch.bfloat16)
    steps = []

    class Look(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            norm = runner.model.backbone.bn1
            steps.append((norm.num_batches_tracked.item(), norm.running_mean.clone()))

    runner.register_hook(Look())
    for hook in hooks:
        runner.register_hook(hook)
    if not hooks:
        # The premise.
        with pytest.raises(NotFiniteError):
            runner.train()
        assert not runner.model.backbone.bn1.running_mean.isfinite().all()
        return
    runner.train()
    counts, means = zip(*steps)
    assert counts == (1, 2, 2, 3)
    assert torch.equal(means[1], means[2])
    buffers = dict(runner.model.named_buffers())
    assert all(buffer.isfinite().all() for buffer in buffers.values())


CLIP = dict(clip_grad=dict(max_norm=0.1))


def test_gradients_that_never_stop_overflowing_stop_the_training(tiny_job):
    """Every step is left out: the weights stay as they are, and no loss says so."""
    runner = scaled_runner(tiny_job, overflow_gradients, iteration=1, **CLIP)
    runner.register_hook(BadNumberHook(max_overflows=2))
    with pytest.raises(NotFiniteError, match='Iteration 4 .*gradient of neck.* 3 steps in a row'):
        runner.train()


def test_only_steps_count_where_several_iterations_make_one(tiny_job):
    runner = scaled_runner(tiny_job, overflow_gradients, 0, accumulative_counts=2, **CLIP)
    runner.register_hook(BadNumberHook(max_overflows=2))
    runner.train()
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**14


def test_an_overflow_leaves_the_gradients_of_earlier_iterations_alone(tiny_job):
    runner = scaled_runner(tiny_job, overflow_forward, 1, accumulative_counts=4)
    runner.optim_wrapper.optim_context = lambda model: torch.autocast('cpu', torch.bfloat16)
    runner.register_hook(BadNumberHook())
    norms = []

    class Look(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            gradient = runner.model.bbox_head.cls_branches[0].weight.grad
            # The last of the four makes the step.
            if batch_idx < 3:
                norms.append(gradient.norm().item())

    runner.register_hook(Look())
    runner.train()
    assert norms[0] > 0 and norms == [norms[0]] * 3


def test_an_iteration_that_is_left_out_makes_no_other_one_late(tiny_job):
    """Two iterations make a step; the second, which would take it, overflows."""

    def overflow_once(model):
        ffn = model.encoder.layers[0].ffn

        def overflow(module, arguments, output):
            if torch.is_autocast_enabled('cpu'):
                handle.remove()
                return output * math.inf
            return output

        handle = ffn.register_forward_hook(overflow)

    runner = scaled_runner(tiny_job, overflow_once, 1, accumulative_counts=2)
    runner.optim_wrapper.optim_context = lambda model: torch.autocast('cpu', torch.bfloat16)
    runner.optim_wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=1.0)
    runner.register_hook(BadNumberHook())
    steps = []
    runner.optim_wrapper.optimizer.register_step_post_hook(lambda *_: steps.append(runner.iter))
    runner.train()
    assert steps == [1, 3]
    assert all(x.grad is None for x in runner.model.parameters())


def test_where_the_batch_cannot_be_saved_the_tensor_is_named_all_the_same(tiny_job, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'bad_batch_iter_3').write_text('in the way of the folder')
    runner = runner_of(tiny_job)
    runner.register_hook(At(2, spoil_loss))
    with pytest.raises(NotFiniteError, match='tensor: loss d0.loss_iou.* could not be saved'):
        runner.train()


def test_a_bad_weight_under_a_scaler_is_an_error(tiny_job):
    runner = scaled_runner(tiny_job, spoil_weight)
    runner.register_hook(BadNumberHook())
    with pytest.raises(NotFiniteError, match='Iteration 3 .*weight encoder.layers.0.norms.1'):
        runner.train()


def test_no_process_runs_layers_alone_that_wait_for_the_others(monkeypatch):
    """SyncBatchNorm gathers statistics in every forward pass, which would hang."""
    monkeypatch.setattr('ddetr_plugin.engine.hooks.bad_numbers.get_world_size', lambda: 2)
    model = torch.nn.Sequential(torch.nn.SyncBatchNorm(3))
    runner = SimpleNamespace(model=model, optim_wrapper=None)
    assert BadNumberHook()._first_bad(runner, in_float32=True) is None
