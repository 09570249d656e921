"""What hooks of all processes have to say before one of them writes a checkpoint."""

from mmengine.hooks import Hook

__all__ = ['SaveTogetherHook']


class SaveTogetherHook(Hook):
    """A hook with a part in checkpoints that is gathered from all processes.

    mmengine's `before_save_checkpoint` reaches the first process alone. `AtomicCheckpointHook`
    calls this event in all of them, before it.
    """

    # The name of the method below, by which a Runner calls it.
    EVENT = 'before_all_save_checkpoint'

    def before_all_save_checkpoint(self, runner) -> None:
        """Put what the checkpoint is to hold where `before_save_checkpoint` finds it.

        Every process comes here as often as the others, so that they may gather.
        """
        raise NotImplementedError
