"""What trainings and tests do about pictures that cannot be read."""

from contextlib import suppress
from pathlib import Path

from mmcv.transforms import LoadImageFromFile
from mmengine.dist import all_gather_object, barrier, is_main_process
from mmengine.runner import IterBasedTrainLoop

from ddetr_plugin.datasets.load_checked import (
    BrokenPictureError,
    Ledger,
    LoadImageChecked,
    list_pictures,
)
from ddetr_plugin.datasets.wrappers import base_datasets
from ddetr_plugin.engine.hooks.save_together import SaveTogetherHook
from ddetr_plugin.registry import HOOKS

__all__ = ['BrokenPictureHook']

KEY = 'broken_pictures'


def checked_loaders(dataset) -> list[tuple[Ledger, int]]:
    """The ledger and `max_broken` of each loader of a training dataset that skips pictures."""
    steps = (step for part in base_datasets(dataset) for step in part.pipeline.transforms)
    return [
        (step.ledger, step.max_broken)
        for step in steps
        if isinstance(step, LoadImageChecked) and step.ledger is not None
    ]


@HOOKS.register_module()
class BrokenPictureHook(SaveTogetherHook):
    """Adds up the broken pictures of all processes, and lets none pass in validation and tests.

    In training it needs `LoadImageChecked` in the pipeline, which skips and counts for one process
    and its data workers. At the end of every epoch, or every `interval` iterations of an
    iteration-based loop, and before checkpoints, this hook adds up all processes, writes the list
    to ``<work_dir>/broken_pictures.txt`` and stops the training if it is longer than `max_broken`.
    Checkpoints that AtomicCheckpointHook writes hold the list, and a resumed run goes on counting.

    In validation and tests, LoadImageFromFile is checked in the same way, but the first broken
    picture stops: without it, or with what a decoder makes of it, AP would be another number.
    This hook sees to it, for any config that has it; mmdet's tools look for LoadImageFromFile in
    the pipelines of tests, which therefore name nothing else. A training pipeline must name
    `LoadImageChecked` itself: data workers of iteration-based loops start before any hook.

    Args:
        interval: iterations between two sums, where there are no epochs.

    Raises:
        BrokenPictureError: on use: see above.
    """

    def __init__(self, interval: int = 1000):
        self.interval = interval

    def before_train(self, runner) -> None:
        """Go on counting where a resumed run's checkpoint ends."""
        loaders = checked_loaders(runner.train_dataloader.dataset)
        if runner.iter and loaders:
            ledger, _ = loaders[0]
            known = ledger.read()
            for path, reason in runner.message_hub.runtime_info.get(KEY, {}).items():
                if path not in known:
                    ledger.add(path, reason)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        by_iteration = isinstance(runner.train_loop, IterBasedTrainLoop)
        if by_iteration and self.every_n_train_iters(runner, self.interval):
            self._add_up(runner)

    def after_train_epoch(self, runner) -> None:
        self._add_up(runner)

    def before_all_save_checkpoint(self, runner) -> None:
        """Give the checkpoint the list as it is now."""
        self._add_up(runner)

    def before_val(self, runner) -> None:
        self._check_all(runner.val_dataloader.dataset)

    def before_test(self, runner) -> None:
        self._check_all(runner.test_dataloader.dataset)

    def _check_all(self, dataset) -> None:
        for part in base_datasets(dataset):
            steps = part.pipeline.transforms
            steps[:] = [
                LoadImageChecked(step) if isinstance(step, LoadImageFromFile) else step
                for step in steps
            ]

    def _add_up(self, runner) -> None:
        loaders = checked_loaders(runner.train_dataloader.dataset)
        if not loaders:
            return
        mine: dict[str, str] = {}
        for ledger, _ in loaders:
            mine |= ledger.read()
        broken: dict[str, str] = {}
        for others in all_gather_object(mine):
            broken |= others
        runner.message_hub.update_info(KEY, broken)
        if broken and is_main_process():
            # On a full disk the checkpoints and the log still have the list.
            with suppress(OSError):
                # Names of files are bytes, which need not be text.
                Path(runner.work_dir, 'broken_pictures.txt').write_text(
                    list_pictures(broken)[1:] + '\n', encoding='utf-8', errors='backslashreplace'
                )
        most = max(max_broken for _, max_broken in loaders)
        if len(broken) > most:
            # A launcher stops the others when the first process ends: not before it has written.
            barrier()
            raise BrokenPictureError(
                f'{len(broken)} broken pictures in all processes, of which max_broken={most} are '
                f'skipped:{list_pictures(broken)}'
            )
