"""How long a training has taken, over all its runs."""

import time

from mmengine.hooks import Hook

from ddetr_plugin.registry import HOOKS

__all__ = ['TrainClockHook']


@HOOKS.register_module()
class TrainClockHook(Hook):
    """Keeps the seconds since training began, validation included, in the checkpoints.

    A resumed run goes on counting from its checkpoint. The number is
    ``runner.message_hub.get_info('train_seconds')``.
    """

    # Before CheckpointHook (VERY_LOW).
    priority = 'LOW'

    def __init__(self):
        self._started: float | None = None

    def before_train(self, runner):
        before = runner.message_hub.runtime_info.get('train_seconds', 0.0)
        self._started = time.monotonic() - before

    def before_save_checkpoint(self, runner, checkpoint):
        if self._started is not None:
            self._update(runner, self._started)
            checkpoint['message_hub'] = runner.message_hub.state_dict()

    def after_train(self, runner):
        if self._started is not None:
            self._update(runner, self._started)

    @staticmethod
    def _update(runner, started: float) -> None:
        runner.message_hub.update_info('train_seconds', time.monotonic() - started)
