"""The only place that uses names of mmengine's Runner, loops and wrappers that are not public.

All were read in mmengine 0.10.7; the tests of checkpoints and of resuming fail where they change.
"""

from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner

__all__ = [
    'count_iteration',
    'decide_val_interval',
    'is_resumed',
    'is_training',
    'load_path',
    'resumes_from_newest',
    'set_load_path',
]


def is_training(runner: Runner) -> bool:
    """Whether the Runner has built its training loop, which validations and tests do not."""
    return isinstance(runner._train_loop, BaseLoop)


def is_resumed(runner: Runner) -> bool:
    """Whether the run continues another."""
    return bool(runner._resume)


def resumes_from_newest(runner: Runner) -> bool:
    """Whether a checkpoint to resume from is still to be found.

    FlexibleRunner's `resume` may also be a path, which is then the user's.
    """
    return runner._resume is True and not runner._has_loaded


def load_path(runner: Runner) -> str | None:
    """The checkpoint that is or was loaded."""
    return runner._load_from


def set_load_path(runner: Runner, path: str | None) -> None:
    """Name the checkpoint that is loaded next."""
    runner._load_from = path


def decide_val_interval(loop: BaseLoop) -> None:
    """Let a loop with dynamic intervals choose that of where it is."""
    loop._decide_current_val_interval()


def count_iteration(wrapper: OptimWrapper) -> None:
    """Count an iteration without a backward pass."""
    wrapper._inner_count += 1
