"""Train on a data set of one's own, or on the demo's scenes; evaluate; draw."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from ddetr_plugin.apis.curves import draw_curves
from ddetr_plugin.apis.demo_data import make_demo_data
from ddetr_plugin.apis.drawing import draw_pairs
from ddetr_plugin.apis.launch import build_runner
from ddetr_plugin.apis.own_data import (
    CUSTOM_CONFIG,
    DEMO_CONFIG,
    DEMO_DATA,
    add_clock,
    fill_in,
    find_data,
    read_config,
)
from ddetr_plugin.apis.same_training import (
    check_same_training,
    describe_data,
    describe_settings,
    last_checkpoint,
)
from ddetr_plugin.data_checks import Split, config_scales, describe_findings
from ddetr_plugin.engine.precision import set_precision
from ddetr_plugin.engine.work_dir.lock import lock_work_dir
from ddetr_plugin.intake.checks import check_model

__all__ = ['OwnTraining', 'demo', 'prepare_own_training', 'run_own_training', 'train_and_test']


class OwnTraining(NamedTuple):
    """A training on data that was checked, in a work folder that holds no other.

    Attributes:
        config: with the files and classes of the data.
        work_dir: the folder, locked for this process.
        val: the split that is evaluated on.
    """

    config: Config
    work_dir: Path
    val: Split


def demo(
    data: str | os.PathLike | None = None,
    config: str | os.PathLike | Config | None = None,
    work_dir: str | os.PathLike | None = None,
    iters: int | None = None,
    amp: str | None = None,
    boxes: str = 'pixels',
    keep_super_classes: bool = False,
    overrides: Mapping | None = None,
    log: Callable[[str], None] = print,
) -> dict:
    """Train on a data folder, or on the demo's scenes; evaluate; draw.

    Leaves in the work folder: checkpoints, metrics.json, curves.png, detections.png and
    detections/. Interrupted, the same call resumes; when the training is complete it only evaluates
    and draws again.

    Args:
        data: a data set as annotation tools export it, see `read_folder`; None makes the scenes.
        config: path, name or Config of a training that counts iterations; by default the one for
            the scenes or the one for own images.
        work_dir: by default work_dirs/<name of the data>, with -amp where `amp` is given.
        iters: length of the training, schedule included.
        amp: mixed precision: None, 'auto' (refused where this CPU is slower with it) or 'force'.
        boxes: what the numbers of boxes are, see `read_data`.
        keep_super_classes: see `read_folder`.
        overrides: dotted keys and values of the config.
        log: takes lines on what is going on.

    Returns:
        bbox_mAP and its kin, train_seconds (validations included) and iterations.

    Raises:
        OSError, ValueError: data, config or overrides do not fit, or the work folder holds another
            training (`OtherTrainingError`) or is in use; a `DataError` has all findings.
        EXPECTED_STOPS: see `ddetr_plugin.apis.launch`.
    """
    training = prepare_own_training(
        data, config, work_dir, iters, amp, boxes, keep_super_classes, overrides, log
    )
    return run_own_training(training, log)


def prepare_own_training(
    data: str | os.PathLike | None = None,
    config: str | os.PathLike | Config | None = None,
    work_dir: str | os.PathLike | None = None,
    iters: int | None = None,
    amp: str | None = None,
    boxes: str = 'pixels',
    keep_super_classes: bool = False,
    overrides: Mapping | None = None,
    log: Callable[[str], None] = print,
) -> OwnTraining:
    """All that comes before the Runner; arguments and errors as `demo`."""
    folder = DEMO_DATA if data is None else Path(data)
    name = folder.resolve().name + ('-amp' if amp else '')
    work_dir = Path(work_dir or Path('work_dirs') / name)
    source = config or (DEMO_CONFIG if data is None else CUSTOM_CONFIG)
    loaded = read_config(source, overrides, work_dir, iters)
    set_precision(loaded, amp)
    if data is None and make_demo_data(folder):
        log(f'Made the scenes in {folder}')
    found = find_data(folder, config_scales(loaded), keep_super_classes, boxes, log)
    lock_work_dir(work_dir)
    described = describe_data(*found.both())
    # The user's folder is left alone.
    found = found.place(work_dir)
    train, val = found.both()
    fill_in(loaded, train, val)
    # Once more: what is said explicitly goes before what was filled in.
    loaded.merge_from_dict(dict(overrides or {}))
    for line in describe_findings(check_model(loaded.model, train, val)):
        log(line)
    add_clock(loaded)
    check_same_training(work_dir, dict(described, **describe_settings(loaded, train)))
    found.write(work_dir)
    log(f'What is trained on and what is validated on: {train.ann_file}, {val.ann_file}')
    return OwnTraining(loaded, work_dir, val)


def run_own_training(training: OwnTraining, log: Callable[[str], None] = print) -> dict:
    """Train, evaluate and draw; returns and raises as `demo`."""
    config, work_dir, val = training
    metrics = train_and_test(config, work_dir, log)
    (work_dir / 'metrics.json').write_text(json.dumps(metrics, indent=2) + '\n')
    draw_curves(work_dir, work_dir / 'curves.png')
    draw_pairs(val, work_dir / 'val.bbox.json', work_dir)
    log(
        f'\nmAP {metrics["bbox_mAP"]:.3f} (AP50 {metrics["bbox_mAP_50"]:.3f}) on '
        f'{len(val.content["images"])} validation pictures after {metrics["iterations"]} '
        f'iterations, {metrics["train_seconds"] / 60:.1f} minutes.\n'
        f'See {work_dir}/metrics.json, curves.png and detections.png.'
    )
    return metrics


def train_and_test(config: Config, work_dir: Path, log: Callable[[str], None] = print) -> dict:
    """Train, or go on training, or only load; then evaluate.

    Args:
        config: of `prepare_own_training`; changed in place.
        work_dir: with the checkpoints of earlier runs.
        log: takes lines on what is going on.

    Returns:
        dict: bbox_mAP and its kin, train_seconds (validations included), and iterations, those
            of the weights that were evaluated.
    """
    max_iters = config.train_cfg.max_iters
    path, iteration = last_checkpoint(work_dir)
    config.test_evaluator.outfile_prefix = str(work_dir / 'val')
    # Else mmengine logs mAP over epochs, which a loop of iterations does not count.
    config.default_hooks.logger.log_metric_by_epoch = False
    if iteration < max_iters:
        if path:
            log(f'Resuming from {path}')
            config.resume, config.load_from = True, path
        runner = build_runner(config)
        runner.train()
        iteration = runner.iter
        seconds = runner.message_hub.get_info('train_seconds')
    else:
        log(f'The training is complete; evaluating {path}')
        runner = build_runner(config)
        # The Runner takes over weights only; clock and iteration are in the checkpoint beside them.
        checkpoint = runner.load_checkpoint(path)
        iteration = checkpoint['meta']['iter']
        seconds = checkpoint['message_hub']['runtime_info']['train_seconds']
        # The checkpoint was written before the last validation; the run that trained timed it.
        seconds = _earlier_seconds(work_dir, iteration) or seconds
    metrics = {
        name.removeprefix('coco/'): value
        for name, value in runner.test().items()
        if name.startswith('coco/')
    }
    return dict(metrics, train_seconds=round(seconds, 1), iterations=iteration)


def _earlier_seconds(work_dir: Path, iterations: int) -> float | None:
    """The train_seconds that an earlier run wrote for as many iterations; None without one."""
    try:
        metrics = json.loads((work_dir / 'metrics.json').read_text())
        return metrics['train_seconds'] if metrics['iterations'] == iterations else None
    except (OSError, ValueError, TypeError, LookupError):
        return None
