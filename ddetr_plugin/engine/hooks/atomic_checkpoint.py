"""Checkpoints that survive whatever happens to the process, the disk or the machine."""

import copy
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log

from ddetr_plugin.engine import mmengine_private
from ddetr_plugin.engine.hooks.save_together import SaveTogetherHook
from ddetr_plugin.engine.hooks.validation_due import LAST_VALIDATION, progress, validation_is_due
from ddetr_plugin.engine.resuming.resume_check import check_resumable
from ddetr_plugin.engine.resuming.resumption import remove_orphans, resume_path
from ddetr_plugin.engine.resuming.settings import apply_present_settings
from ddetr_plugin.engine.work_dir.checkpoint_files import (
    CheckpointError,
    PostponingBackend,
    publish,
    save_complete,
)
from ddetr_plugin.engine.work_dir.durable_files import remove_partial_files, write_text
from ddetr_plugin.engine.work_dir.lock import lock_work_dir_together
from ddetr_plugin.registry import HOOKS

__all__ = ['AtomicCheckpointHook']

OUTDATED = 'outdated_ckpts'
# What a checkpoint that fails must leave as it was.
ROLLED_BACK_FIELDS = (
    'best_ckpt_path',
    'best_ckpt_path_dict',
    'keep_ckpt_ids',
    'last_ckpt',
    '_outdated',
)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, whose files are complete whenever the process is killed.

    * A checkpoint, whoever saves it through the runner, is written as ``<name>.partial``, brought
      to the disk and renamed. ``last_checkpoint`` is replaced in the same way, and after it.
    * Old checkpoints are removed after the new one is complete and named, so that there is one
      more of them for a moment than `max_keep_ckpts` says.
    * A resumed run removes what a killed one had begun to write. It continues from the newest
      complete checkpoint, even if ``last_checkpoint`` names a broken one. If the run was killed
      before or in the validation of that checkpoint, it is validated first.
    * If a checkpoint cannot be written (full disk, quota), the previous ones stay, an error is
      logged and the training goes on: space may be there at the next one. After `max_failures`
      in a row, or where no more will follow, the training stops with the reason.
    * A resumed run has the learning rates, weight decays, schedules and other settings of its
      config, not those of the checkpoint; the log tells what differs, and what does not apply.
    * A file of the best weights is there if and only if the newest checkpoint names it, except
      for a moment; what a kill or a full disk leaves over is removed.
    * One training at a time has the work folder: a second one, whose files would be taken for
      those of a killed run, stops.

    Checkpoints are local files, one each: not for folders of several files, as DeepSpeed or FSDP
    with ``state_dict_cfg='local'`` write them.

    Args:
        max_failures: how many checkpoints in a row may fail before the training stops; 0: none.
        **settings: as of mmengine's CheckpointHook.

    Raises:
        CheckpointError: on use: see above.
        ResumeError: on use: there is a checkpoint to resume from, but none is complete, or it
            is not of this training.
        WorkDirInUseError: on use: another process is training in the work folder.
    """

    def __init__(self, *args, max_failures: int = 3, **settings):
        super().__init__(*args, **settings)
        if self.file_client_args is not None:
            raise ValueError('give backend_args instead of file_client_args')
        self.max_failures = max_failures
        self._failures = 0
        self._outdated: list[str] = []
        self._training = False
        self._resumed = False
        self._saved = False
        self._in_joint_save = False
        self._asked_for_lock = False
        self._lock: int | None = None

    def before_run(self, runner) -> None:
        """Lock the work folder for a training, and choose the checkpoint of one that resumes."""
        # Only the first process gets the lock, but all of them must ask, and as often:
        # ShardingRunner calls this once more.
        if mmengine_private.is_training(runner) and not self._asked_for_lock:
            self._asked_for_lock = True
            self._lock = lock_work_dir_together(runner.work_dir)
        if mmengine_private.resumes_from_newest(runner):
            given = mmengine_private.load_path(runner)
            path = resume_path(runner.work_dir, self._folder(runner), given)
            mmengine_private.set_load_path(runner, path)
            if path is not None:
                check_resumable(path, runner, self.save_optimizer)

    def after_run(self, runner) -> None:
        self._asked_for_lock = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._resumed = mmengine_private.is_resumed(runner)
        if self._resumed:
            apply_present_settings(runner, checkpoint)

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is not LocalBackend:
            raise ValueError(
                f"checkpoints in {self.out_dir} are not local files; use mmengine's CheckpointHook"
            )
        self.file_backend: LocalBackend = PostponingBackend(lambda old: self._outdated.append(old))
        runner.save_checkpoint = self._atomic(runner)
        if is_main_process():
            for folder in {self.out_dir, runner.work_dir}:
                for path in remove_partial_files(folder):
                    print_log(f'Removed {path}, of a run that was killed.', logger='current')
        self._training = True
        if self._resumed:
            info = runner.message_hub.runtime_info
            self.last_ckpt = info.get('last_ckpt')
            self._outdated = list(info.get(OUTDATED, []))
            self._remove_outdated()
            # All do what the first one finds: its work folder may not be the others'.
            due = [validation_is_due(runner, self.by_epoch, self.last_ckpt)]
            broadcast_object_list(due)
            if due[0]:
                print_log('Validating the checkpoint first: it was not before.', logger='current')
                runner.val_loop.run()
        if self._resumed and is_main_process():
            here = runner.epoch if self.by_epoch else runner.iter
            # Also those of scores that this run does not watch.
            info = runner.message_hub.runtime_info
            best = {info[key] for key in info if key.startswith('best_ckpt')}
            named = {Path(path).name for path in best if path}
            for path in remove_orphans(self.out_dir, self.filename_tmpl, here, named):
                print_log(f'Removed {path}, which no checkpoint names.', logger='current')

    def after_val_epoch(self, runner, metrics: dict) -> None:
        """Keep the best checkpoint of a training; a validation alone saves nothing."""
        if not self._training:
            return
        super().after_val_epoch(runner, metrics)
        # Without the note a resumed run validates once more, and may save the best then.
        if is_main_process() and not self._failures:
            with suppress(OSError):
                write_text(Path(runner.work_dir, LAST_VALIDATION), progress(runner, self.last_ckpt))

    def after_train(self, runner) -> None:
        super().after_train(runner)
        self._training = False
        # The method of its class again.
        del runner.save_checkpoint

    def _save_checkpoint(self, runner) -> None:
        is_last = self.is_last_train_epoch if self.by_epoch else self.is_last_train_iter
        save = super()._save_checkpoint
        self._save_or_roll_back(runner, lambda: save(runner), is_last(runner))

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        save = super()._save_best_checkpoint
        self._save_or_roll_back(
            runner, lambda: save(runner, metrics), runner.train_loop.iter >= runner.max_iters
        )

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        """Write a checkpoint, name it in ``last_checkpoint``, then remove the outdated ones."""
        name = self.filename_tmpl.format(step)
        path = self.file_backend.join_path(self.out_dir, name)
        info = runner.message_hub
        if self.max_keep_ckpts > 0:
            kept = [*(k for k in self.keep_ckpt_ids if k != step), step]
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
            for old in kept[: -self.max_keep_ckpts]:
                old_name = self.filename_tmpl.format(old)
                self._outdated.append(self.file_backend.join_path(self.out_dir, old_name))
            info.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        info.update_info('last_ckpt', path)
        # A run that is killed before it has removed them does so when it is resumed.
        info.update_info(OUTDATED, list(self._outdated))
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self.last_ckpt = path
        if is_main_process():
            write_text(Path(runner.work_dir, 'last_checkpoint'), path)

    @master_only
    def _publish_model(self, runner, ckpt_path: str) -> None:
        """Write the published keys of a checkpoint as ``<name>-<start of its SHA-256>.pth``."""
        path = publish(Path(ckpt_path), self.published_keys)
        print_log(f'Published {ckpt_path} as {path}.', logger='current')

    def _save_or_roll_back(self, runner, save: Callable[[], None], is_last: bool) -> None:
        """Save, and go on without if that fails; all processes learn what the first one met.

        Raises:
            CheckpointError: too many attempts in a row have failed, or it was the last one.
        """
        info = runner.message_hub.runtime_info
        infos = dict(info)
        own = {
            name: copy.copy(value)
            for name, value in vars(self).items()
            if name in ROLLED_BACK_FIELDS
        }
        best = self._best_paths()
        error: list[str | None] = [None]
        self._saved = False
        self._in_joint_save = True
        try:
            save()
        except OSError as failure:
            error[0] = str(failure)
        finally:
            self._in_joint_save = False
        broadcast_object_list(error)
        if error[0] is None:
            # A validation that is not the best writes nothing, and shows nothing about the disk.
            if self._saved:
                self._failures = 0
                self._remove_outdated()
            return
        if is_main_process():
            # No checkpoint will name them.
            for path in self._best_paths() - best:
                with suppress(OSError):
                    Path(path).unlink(missing_ok=True)
        # As if nothing had been tried: the next checkpoint must not count on files of this one.
        info.clear()
        info.update(infos)
        for name, value in own.items():
            setattr(self, name, value)
        self._failures += 1
        message = (
            f'A checkpoint could not be written: {error[0]}. The newest complete one is '
            f'{self.last_ckpt}.'
        )
        if is_last or self._failures > self.max_failures:
            message += ' Make room, and continue from there with --resume'
            raise CheckpointError(message) from None
        print_log(
            f'{message} The training goes on; the next one is tried again.',
            logger='current',
            level=logging.ERROR,
        )

    def _remove_outdated(self) -> None:
        """Remove what the newest checkpoint, complete and named, has replaced."""
        needed = {self.last_ckpt, *self._best_paths()}
        here = Path(self.out_dir).resolve()
        if is_main_process():
            for path in set(self._outdated) - needed:
                # A run resumed from a copy leaves the original's files alone.
                if Path(path).parent.resolve() == here and self.file_backend.isfile(path):
                    self.file_backend.delete(path)
        self._outdated = []

    def _best_paths(self) -> set[str]:
        """The files of the best weights so far, one for each score that is watched."""
        paths = getattr(self, 'best_ckpt_path_dict', {}).values()
        return {path for path in (getattr(self, 'best_ckpt_path', None), *paths) if path}

    def _folder(self, runner) -> str:
        """Where the checkpoints lie; before the training begins `out_dir` does not say so."""
        if self.out_dir is None or self._training:
            return self.out_dir or runner.work_dir
        return os.path.join(self.out_dir, os.path.basename(runner.work_dir.rstrip(os.sep)))

    def _atomic(self, runner) -> Callable[..., None]:
        """The runner's `save_checkpoint`, writing under a name that is not yet the file's own."""
        save = runner.save_checkpoint

        def save_checkpoint(out_dir: str, filename: str, *args, **settings) -> None:
            # All processes are here; only the first one gets to `before_save_checkpoint`.
            runner.call_hook(SaveTogetherHook.EVENT)
            save_complete(save, out_dir, filename, self._in_joint_save, *args, **settings)
            self._saved = True

        return save_checkpoint
