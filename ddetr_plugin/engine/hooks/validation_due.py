"""Whether a resumed run owes the validation of the checkpoint that it continues from."""

from pathlib import Path

from mmengine.runner import IterBasedTrainLoop, Runner

from ddetr_plugin.engine import mmengine_private

__all__ = ['LAST_VALIDATION', 'progress', 'validation_is_due']

# In the work folder: `progress` of the last validation whose checkpoint is complete.
LAST_VALIDATION = 'last_validation'


def progress(runner: Runner, checkpoint: str | None) -> str:
    """How far a run is, and its newest checkpoint."""
    return f'{checkpoint} epoch {runner.epoch} iter {runner.iter}'


def validation_is_due(runner: Runner, by_epoch: bool, checkpoint: str | None) -> bool:
    """Whether the loop would have validated the checkpoint that the run has resumed from.

    Args:
        runner: resumed, before its first step.
        by_epoch: whether checkpoints are written at ends of epochs.
        checkpoint: the newest one's path.
    """
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    mmengine_private.decide_val_interval(loop)
    if isinstance(loop, IterBasedTrainLoop):
        done, end = loop.iter, loop.max_iters
    elif not by_epoch:
        # Written within an epoch, at whose end the validation comes.
        return False
    else:
        done, end = loop.epoch, loop.max_epochs
    if done < loop.val_begin or (done % loop.val_interval and done != end):
        return False
    note = Path(runner.work_dir, LAST_VALIDATION)
    return not note.is_file() or note.read_text() != progress(runner, checkpoint)
