"""The random state inside checkpoints, so that a resumed run continues bit for bit."""

import random

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.runner import IterBasedTrainLoop

from ddetr_plugin.engine.hooks.save_together import SaveTogetherHook
from ddetr_plugin.registry import HOOKS

__all__ = ['RandomStateHook', 'capture_random_state', 'restore_random_state']

KEY = 'ddetr_plugin_random_state'


def capture_random_state():
    """The states of Python's, numpy's and torch's global generators of this process.

    Returns:
        dict of tensors, lists and numbers only, so that a checkpoint holding it loads safely.
    """
    version, words, gauss = random.getstate()
    drawn = np.random.get_state(legacy=False)
    position, keys = drawn['state']['pos'], torch.from_numpy(drawn['state']['key'].astype(np.int64))
    state = {
        'python': [version, list(words), gauss],
        'numpy': [drawn['bit_generator'], keys, position, drawn['has_gauss'], drawn['gauss']],
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state):
    """Undo everything drawn since `state` was captured. Loading may have moved it to a GPU."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state['numpy']
    keys = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


class Replay:
    """Stands for the batches of an iteration-based loop that replays those before a checkpoint.

    After them the random state is restored, before a process without data workers loads the next
    one; then the loop has its own iterator back.
    """

    def __init__(self, loop: IterBasedTrainLoop, state: dict):
        self.loop, self.state = loop, state
        self.batches, self.left = loop.dataloader_iterator, loop.iter
        loop.dataloader_iterator = self

    def __next__(self):
        if self.left == 0:
            restore_random_state(self.state)
            self.loop.dataloader_iterator = self.batches
        self.left -= 1
        return next(self.batches)


@HOOKS.register_module()
class RandomStateHook(SaveTogetherHook):
    """Puts the random state into checkpoints and hides validation's draws from the training.

    mmengine restores weights, optimizer, schedules and seed on resumption, but not the position
    inside the random streams: dropout and augmentations of a resumed run would differ from those
    of a run that was never stopped. With this hook they are the same, bit for bit, where

    * the config sets ``randomness.seed`` (samplers and data workers are seeded from it), and
    * in an epoch-based loop, checkpoints are written at ends of epochs and data workers, if
      any, are not persistent (their streams live outside this process; without persistence
      mmengine seeds them anew each epoch); any number of processes; or
    * in an iteration-based loop, an InfiniteSampler draws the samples (mmengine replays them up
      to the iteration of the checkpoint); any number of data workers, and, with
      AtomicCheckpointHook, of processes.

    Elsewhere it changes nothing for the worse: runs continue as they do without it; such as from
    checkpoints between two steps of an optimiser that accumulates gradients.
    """

    # Before CheckpointHook (VERY_LOW), which writes the state down at the end of the same epoch.
    priority = 'LOW'

    def __init__(self):
        self._states = None  # of all processes, where training continues from
        self._before_validation = None

    def after_load_checkpoint(self, runner, checkpoint):
        self._states = checkpoint.get(KEY)

    def before_train(self, runner):
        """Decide whether the loaded states, if any, belong to this run."""
        if self._states is None:
            return
        if runner.iter == 0:
            # Weights were loaded to start a new training, not to continue that one.
            self._states = None
        elif len(self._states) != get_world_size():
            runner.logger.warning(
                f'The checkpoint holds random states of {len(self._states)} processes and '
                f'{get_world_size()} are running: the run continues, but not bit for bit.'
            )
            self._states = None
        if self._states is not None and isinstance(runner.train_loop, IterBasedTrainLoop):
            state = self._states[get_rank()]
            # A validation that is made up for before the first iteration may save again.
            restore_random_state(state)
            Replay(runner.train_loop, state)
            # Not for later checkpoints, whose states are others.
            self._states = None

    def before_train_epoch(self, runner):
        """Start the epoch from where the previous one ended, here or in the resumed run."""
        if self._states is not None:
            restore_random_state(self._states[get_rank()])

    def after_train_epoch(self, runner):
        """Take the states of all processes here: only the first one writes checkpoints."""
        self._states = all_gather_object(capture_random_state())

    def before_val(self, runner):
        self._before_validation = capture_random_state()

    def after_val(self, runner):
        restore_random_state(self._before_validation)
        self._before_validation = None

    def before_all_save_checkpoint(self, runner):
        """Take the states of all processes; AtomicCheckpointHook calls it in each of them."""
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            state = self._before_validation or capture_random_state()
            self._states = all_gather_object(state)

    def before_save_checkpoint(self, runner, checkpoint):
        if isinstance(runner.train_loop, IterBasedTrainLoop) and get_world_size() == 1:
            checkpoint[KEY] = [self._before_validation or capture_random_state()]
        elif self._states is not None:
            checkpoint[KEY] = self._states
