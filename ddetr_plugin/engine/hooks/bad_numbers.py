"""Stops a training at the first NaN or infinity, and says where it comes from."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn import SyncBatchNorm

from ddetr_plugin.engine.hooks.first_bad import (
    first_bad_gradient,
    first_bad_input,
    first_bad_output,
    first_bad_weight,
    is_bad,
)
from ddetr_plugin.engine.hooks.random_state import capture_random_state
from ddetr_plugin.engine.hooks.save_batch import save_batch
from ddetr_plugin.engine.mmengine_private import count_iteration
from ddetr_plugin.models.losses.assigner import NotFiniteError
from ddetr_plugin.ops.torch_private import copy_all
from ddetr_plugin.registry import HOOKS

__all__ = ['BadNumberHook']


class _BadNormError(NotFiniteError):
    """The norm of the gradients is NaN or infinite."""


@HOOKS.register_module()
class BadNumberHook(Hook):
    """Stops at a NaN or an infinity, names the first tensor that has one, and saves the batch.

    It looks at numbers that the host has anyway, so that no step waits for a GPU once more: the
    costs of matching (before the losses), the norm by which gradients are clipped (before the
    weights change), and the losses that are logged. Only if one of them is bad does it run the
    step again, module by module, and looks in this order: pictures and boxes, weights, outputs of
    modules, what the step complained of, losses, gradients. The pictures, as they were loaded and
    augmented, are in ``<work_dir>/bad_batch_iter_<n>``. The weights are still good, except where
    gradients are not clipped (``clip_grad``) and a loss was bad; checkpoints are, in any case.

    Under a gradient scaler (float16) an overflow is not an error: the scaler leaves out the step,
    and so does this hook if already the forward pass overflows but is finite in float32 (in a run
    of several processes only if the matching did not meet it). Batch norms, whose running
    statistics would stay bad for ever, then get those from before the step back. Only more than
    `max_overflows` such steps in a row stop the training: no scale is small enough then, and
    nothing is learned any more. Overflows of the backward pass are seen, and counted, where
    gradients are clipped.

    Args:
        max_overflows: see above.

    Raises:
        NotFiniteError: on use: the step has bad numbers.
    """

    # After RuntimeInfoHook, which brings the losses to the host, and before CheckpointHook.
    priority = 'NORMAL'

    def __init__(self, max_overflows: int = 100):
        self.max_overflows = max_overflows
        self._overflows = 0
        self._losses: dict = {}
        self._undo: list[Callable[[], None]] = []

    def before_train(self, runner) -> None:
        """Watch the steps of the model and of the optimizer."""
        self._data: dict = {}
        self._random_state: dict = {}
        step = runner.model.train_step
        self._statistics = running_statistics(runner.model) if scaled(runner.optim_wrapper) else []
        self._before = [tensor.clone() for tensor in self._statistics]

        def train_step(data, optim_wrapper):
            self._data, self._random_state = data, capture_random_state()
            if self._statistics:
                copy_all(self._before, self._statistics)
            try:
                return step(data, optim_wrapper)
            except NotFiniteError as error:
                return self._judge(runner, error)

        runner.model.train_step = train_step
        self._undo = [lambda: delattr(runner.model, 'train_step')]
        handle = self._model(runner).register_forward_hook(self._keep_losses)
        self._undo.append(handle.remove)
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapper) and wrapper.clip_grad_kwargs and not scaled(wrapper):
            handle = wrapper.optimizer.register_step_pre_hook(lambda *_: self._check_norm(wrapper))
            self._undo.append(handle.remove)

    def after_train(self, runner) -> None:
        for undo in self._undo:
            undo()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Look at the losses as they were logged."""
        scalars = runner.message_hub.log_scalars
        for name in outputs or {}:
            if not math.isfinite(scalars[f'train/{name}'].current()):
                error = NotFiniteError(f'train/{name} is {scalars[f"train/{name}"].current()}')
                self._judge(runner, error, stepped=True)
                return
        wrapper = runner.optim_wrapper
        if not outputs or not scaled(wrapper) or not wrapper.should_update():
            return
        norm = self._norm(wrapper)
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        if self._overflows > self.max_overflows:
            # All processes have the same norm, and stop here together.
            raise self._report(
                runner,
                _BadNormError(
                    f'the norm of the gradients is {norm}, the last of {self._overflows} steps in '
                    'a row that overflow'
                ),
            )

    def _keep_losses(self, model, arguments, output) -> None:
        self._losses = output if isinstance(output, dict) else {}

    @staticmethod
    def _norm(wrapper: OptimWrapper) -> float:
        """The norm by which gradients were clipped last; 0 where they are not."""
        if not wrapper.clip_grad_kwargs:
            return 0.0
        history = wrapper.message_hub.log_scalars.get(f'train/{wrapper.grad_name}')
        return 0.0 if history is None else history.current()

    def _check_norm(self, wrapper: OptimWrapper) -> None:
        norm = self._norm(wrapper)
        if not math.isfinite(norm):
            raise _BadNormError(f'the norm of the gradients is {norm}')

    @staticmethod
    def _model(runner):
        return runner.model.module if is_model_wrapper(runner.model) else runner.model

    def _judge(self, runner, complaint: NotFiniteError, stepped: bool = False) -> dict:
        """Stop; or, if it is an overflow that a scaler deals with, leave out the step.

        Within a step (not `stepped`) other processes wait for this one's gradients; after it, all
        of them have left it out.
        """
        if scaled(runner.optim_wrapper) and (stepped or get_world_size() == 1):
            self._restore_statistics()
            first = self._first_bad(runner, in_float32=True)
            # Looking for it has run the model.
            self._restore_statistics()
            if first is None and self._overflows < self.max_overflows:
                self._overflows += 1
                print_log(
                    f'Left out a step that overflows in float16 ({complaint}).',
                    logger='current',
                    level=logging.WARNING,
                )
                if not stepped:
                    self._count_iteration(runner.optim_wrapper)
                return {}
        raise self._report(runner, complaint)

    @staticmethod
    def _count_iteration(wrapper: OptimWrapper) -> None:
        """Count an iteration without a backward pass, and end the step that it belongs to.

        Else all steps to come would be one iteration late, where several iterations make one.
        """
        count_iteration(wrapper)
        groups = wrapper.optimizer.param_groups
        if wrapper.should_update() and any(x.grad is not None for g in groups for x in g['params']):
            wrapper.step()
            wrapper.zero_grad()

    def _restore_statistics(self) -> None:
        if self._statistics:
            copy_all(self._statistics, self._before)

    def _first_bad(self, runner, in_float32: bool) -> str | None:
        """The name of the first bad tensor, if it is found without other processes."""
        model, wrapper = self._model(runner), runner.optim_wrapper
        if isinstance(runner.model, FullyShardedDataParallel) or (
            get_world_size() > 1 and any(isinstance(m, SyncBatchNorm) for m in model.modules())
        ):
            # Modules would wait for the other processes.
            return None
        context = nullcontext() if in_float32 else wrapper.optim_context(model)
        with context:
            batch = model.data_preprocessor(self._data, True)
            return (
                first_bad_input(batch)
                or first_bad_weight(model)
                or first_bad_output(model, batch, self._random_state)
            )

    def _report(self, runner, complaint: NotFiniteError) -> NotFiniteError:
        """Save the batch, and return the error to raise."""
        # Before the model runs again.
        losses = {k: v for k, v in self._losses.items() if isinstance(v, Tensor)}
        first = self._first_bad(runner, in_float32=False)
        if first is None:
            first = next((f'loss {k}' for k, v in losses.items() if is_bad(v)), None)
        if first is None and isinstance(complaint, _BadNormError) and get_world_size() == 1:
            model = self._model(runner)
            with runner.optim_wrapper.optim_context(model):
                batch = model.data_preprocessor(self._data, True)
                first = first_bad_gradient(model, batch, self._random_state)
        name = f'bad_batch_iter_{runner.iter + 1}'
        folder = Path(
            runner.work_dir, name if get_world_size() == 1 else f'{name}_rank_{get_rank()}'
        )
        paths = [sample.metainfo.get('img_path') for sample in self._data['data_samples']]
        report = (
            f'Iteration {runner.iter + 1} (epoch {runner.epoch + 1}) has a NaN or an infinity. '
            f'The first bad tensor: {first or "not found"}. Noticed because: {complaint}. '
            f'Pictures: {", ".join(map(str, paths))}.'
        )
        saved = f'{report} They are saved in {folder}.'
        try:
            save_batch(
                folder,
                self._data,
                saved,
                iter=runner.iter + 1,
                random_state=self._random_state,
                losses={k: v.detach().cpu() for k, v in losses.items()},
            )
        # torch reports a full disk as a RuntimeError; what else goes wrong hides no bad number.
        except Exception as error:
            saved = f'{report} They could not be saved in {folder}: {error}'
        return NotFiniteError(saved)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers of all norms with running statistics, which their forward pass changes."""
    norms = (m for m in model.modules() if isinstance(getattr(m, 'running_mean', None), Tensor))
    return [buffer for module in norms for buffer in module.buffers()]


def scaled(wrapper) -> bool:
    """Whether an optimiser wrapper scales gradients, and leaves out steps that overflow."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler is not None and scaler.is_enabled()
