"""Train a model from a config."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from ddetr_plugin.apis.config_reading import enable_auto_scale_lr, load_config, require_file
from ddetr_plugin.apis.launch import build_runner
from ddetr_plugin.compat import require_panopticapi
from ddetr_plugin.data_checks import DataError, check_config, describe_findings, has_errors
from ddetr_plugin.engine.precision import set_precision
from ddetr_plugin.engine.processes import is_first, leave_processes
from ddetr_plugin.engine.work_dir.lock import WorkDirInUseError, lock_work_dir
from ddetr_plugin.intake import repair_config

__all__ = ['WorkDirError', 'prepare_training', 'run_training', 'train']


class WorkDirError(OSError):
    """Nothing can be written to a work folder."""


def train(
    config: str | os.PathLike | Config,
    work_dir: str | os.PathLike | None = None,
    resume: bool | str | os.PathLike = False,
    amp: str | None = None,
    auto_scale_lr: bool = False,
    check_data: bool = True,
    overrides: Mapping | None = None,
    launcher: str = 'none',
    local_rank: int = 0,
    log: Callable[[str], None] = print,
) -> Runner:
    """Train a model from a config.

    Before anything else it looks through the annotation files for what would spoil the training,
    and whether all images are there. Annotation files that can be repaired, such as those that
    count from 0, are: in the work folder, and the training reads that. The originals stay as they
    are.

    Args:
        config: path, name of a config of this package, or Config, which stays as it is.
        work_dir: output folder; default the config's own, else ``work_dirs/<config name>``.
        resume: True continues from the newest checkpoint in the work folder, a path from that one.
        amp: mixed precision: None, 'auto' (refused where this CPU is slower with it) or 'force'.
            Scaled float16 on CUDA, bfloat16 autocast on the CPU.
        auto_scale_lr: multiply every learning rate by (processes * batch size / base batch size).
        check_data: look through the annotation files.
        overrides: dotted keys and values of the config.
        launcher: what started the processes of a distributed run: 'none', 'pytorch' (torchrun),
            'slurm' or 'mpi'.
        local_rank: number of this process on its machine, where the launcher does not say.
        log: takes lines on the data.

    Returns:
        The Runner at the end of the training, with `model`, `work_dir` and `message_hub`.

    Raises:
        OSError, ValueError: config, overrides, checkpoint or precision do not fit; the work folder
            is in use or cannot be written to; the data would spoil the training (`DataError`, with
            all findings).
        LaunchError: the launcher does not fit the machine or the environment.
        MissingMMCVOpError, MissingPanopticAPIError: something has to be installed.
        EXPECTED_STOPS: see `ddetr_plugin.apis.launch`.
    """
    prepared = prepare_training(config, work_dir, resume, amp, auto_scale_lr, overrides, launcher)
    return run_training(prepared, check_data, local_rank, log)


def prepare_training(
    config: str | os.PathLike | Config,
    work_dir: str | os.PathLike | None = None,
    resume: bool | str | os.PathLike = False,
    amp: str | None = None,
    auto_scale_lr: bool = False,
    overrides: Mapping | None = None,
    launcher: str = 'none',
) -> Config:
    """The config of a training, which nothing was started of; arguments and errors as `train`."""
    config = load_config(config, overrides, work_dir, launcher)
    set_precision(config, amp)
    if auto_scale_lr:
        enable_auto_scale_lr(config)
    if resume:
        config.resume = True
        config.load_from = None
        if resume is not True:
            require_file(resume, 'checkpoint')
            config.load_from = str(resume)
    # Before the lock makes the work folder.
    require_panopticapi(config.to_dict())
    return config


def run_training(
    config: Config,
    check_data: bool = True,
    local_rank: int = 0,
    log: Callable[[str], None] = print,
) -> Runner:
    """Run what `prepare_training` has prepared; arguments, result and errors as `train`."""
    if check_data:
        _check_data(config, log)
    if is_first(config):
        # Before anything is written; AtomicCheckpointHook, which locks the folder for every
        # Runner, comes after the log file.
        _lock(config.work_dir)
    runner = build_runner(config, local_rank)
    runner.train()
    leave_processes()
    return runner


def _check_data(config: Config, log: Callable[[str], None]) -> None:
    """Looks through the data, and repairs what stands in the way of the training and can be.

    Every process of a run does, so that all train on the same files; the first one speaks, writes,
    and raises where the training would be spoilt.
    """
    findings = check_config(config)
    if has_errors(findings):
        repairs = repair_config(config, Path(config.work_dir) / 'annotations')
        if not is_first(config):
            return
        if repairs.contents:
            _lock(config.work_dir)
            repairs.write()
            log(f'Annotation files were repaired in {repairs.folder}:')
            for line in repairs.changes.lines():
                log(f'    {line}')
            name = Path(config.filename).name if config.filename else 'the config written there'
            written = Path(config.work_dir) / name
            log(f'{written} names them: test and predict with that config, not with yours')
            findings = check_config(config)
        findings = repairs.findings + findings
    if not is_first(config):
        return
    for line in describe_findings(findings):
        log(line)
    if has_errors(findings):
        raise DataError(
            findings,
            'Correct it; tools/check_dataset.py --config lists everything. --skip-data-check '
            'trains anyway',
        )


def _lock(work_dir: str) -> None:
    try:
        lock_work_dir(work_dir)
    except WorkDirInUseError:
        raise
    except OSError as error:
        raise WorkDirError(
            f'nothing can be written to {work_dir}: {error}. Name another folder with --work-dir'
        ) from error
