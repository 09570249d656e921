"""The random state inside checkpoints, so that a resumed run continues bit for bit."""

import random

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook

from ddetr_plugin.registry import HOOKS

__all__ = ['RandomStateHook', 'capture_random_state', 'restore_random_state']

KEY = 'ddetr_plugin_random_state'


def capture_random_state():
    """The states of Python's, numpy's and torch's global generators of this process.

    Returns:
        dict of tensors, lists and numbers only, so that a checkpoint holding it loads safely.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        'python': [version, list(words), gauss],
        'numpy': [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
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


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Every epoch starts from the random state in which the previous one ended.

    mmengine restores weights, optimizer, schedules and seed on resumption, but not the position
    inside the random streams: dropout and augmentations of a resumed run differ from those of a
    run that was never stopped. This hook stores the states of all processes in the checkpoint
    and makes validation, which also draws numbers, invisible to the training.

    Resumption is then bit for bit under three conditions: the config sets ``randomness.seed``
    (the sampler is built from it), checkpoints are written at ends of epochs by an epoch-based
    loop, and data workers, if any, are not persistent (their streams live outside this process;
    without persistence mmengine seeds them anew each epoch).
    """

    # Before CheckpointHook (VERY_LOW), which writes the state down at the end of the same epoch.
    priority = 'LOW'

    def __init__(self):
        self._states = None

    def after_train_epoch(self, runner):
        """Take the state of every process; only the first one writes checkpoints."""
        self._states = all_gather_object(capture_random_state())

    def before_save_checkpoint(self, runner, checkpoint):
        if self._states is not None:
            checkpoint[KEY] = self._states

    def after_load_checkpoint(self, runner, checkpoint):
        self._states = checkpoint.get(KEY)

    def before_train(self, runner):
        if self._states is None:
            return
        if runner.iter == 0:
            # Weights were loaded to start a new training, not to continue this one.
            self._states = None
        elif len(self._states) != get_world_size():
            runner.logger.warning(
                f'The checkpoint holds random states of {len(self._states)} processes and '
                f'{get_world_size()} are running: the run continues, but not bit for bit.'
            )
            self._states = None

    def before_train_epoch(self, runner):
        if self._states is not None:
            restore_random_state(self._states[get_rank()])
