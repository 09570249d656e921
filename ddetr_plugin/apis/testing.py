"""Evaluate a checkpoint on a config's test data."""

import os
from collections.abc import Mapping

from mmengine.config import Config

from ddetr_plugin.apis.config_reading import load_config, require_checkpoint
from ddetr_plugin.apis.launch import build_runner
from ddetr_plugin.compat import require_panopticapi
from ddetr_plugin.data_checks import box_datasets, check_encoding
from ddetr_plugin.engine.precision import set_test_precision
from ddetr_plugin.engine.processes import leave_processes

__all__ = ['evaluate', 'prepare_test', 'run_test']


def evaluate(
    config: str | os.PathLike | Config,
    checkpoint: str | os.PathLike,
    work_dir: str | os.PathLike | None = None,
    amp: str | None = None,
    out: str | os.PathLike | None = None,
    show: bool = False,
    show_dir: str | os.PathLike | None = None,
    wait_time: float = 2,
    overrides: Mapping | None = None,
    launcher: str = 'none',
    local_rank: int = 0,
) -> dict:
    """Evaluate a checkpoint on a config's test data, by the config's own metrics.

    Args:
        config: path, name of a config of this package, or Config, which stays as it is.
        checkpoint: file, folder of transformers or URL.
        work_dir: folder for the log; default the config's own, else ``work_dirs/<config name>``.
        amp: predict under autocast: None, 'auto' (refused where this CPU is slower with it) or
            'force'. float16 on CUDA, bfloat16 on the CPU.
        out: a .pkl file for the predictions.
        show: show the drawn predictions in a window.
        show_dir: write the drawn predictions to work_dir/TIMESTAMP/show_dir.
        wait_time: seconds for each image that is shown.
        overrides: dotted keys and values of the config.
        launcher, local_rank: see `train`.

    Returns:
        The metrics, such as `coco/bbox_mAP`.

    Raises:
        OSError, ValueError: config, overrides, checkpoint or precision do not fit.
        LaunchError, MissingMMCVOpError, MissingPanopticAPIError, EXPECTED_STOPS: as `train`.
    """
    prepared = prepare_test(
        config, checkpoint, work_dir, amp, out, show, show_dir, wait_time, overrides, launcher
    )
    return run_test(prepared, out, local_rank)


def prepare_test(
    config: str | os.PathLike | Config,
    checkpoint: str | os.PathLike,
    work_dir: str | os.PathLike | None = None,
    amp: str | None = None,
    out: str | os.PathLike | None = None,
    show: bool = False,
    show_dir: str | os.PathLike | None = None,
    wait_time: float = 2,
    overrides: Mapping | None = None,
    launcher: str = 'none',
) -> Config:
    """The config of a test, which nothing was started of; arguments and errors as `evaluate`."""
    config = load_config(config, overrides, work_dir, launcher)
    require_checkpoint(checkpoint)
    config.load_from = str(checkpoint)
    config.resume = False
    require_panopticapi(config.to_dict())
    _require_plain_annotations(config)
    set_test_precision(config, amp)
    if show or show_dir is not None:
        _enable_drawing(config, show, show_dir, wait_time)
    if out is not None and not str(out).endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out must end with .pkl or .pickle, got {out}')
    return config


def run_test(config: Config, out: str | os.PathLike | None = None, local_rank: int = 0) -> dict:
    """Run what `prepare_test` has prepared; arguments, result and errors as `evaluate`."""
    runner = build_runner(config, local_rank)
    if out is not None:
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=str(out)))
    metrics = runner.test()
    leave_processes()
    return metrics


def _enable_drawing(
    config: Config, show: bool, show_dir: str | os.PathLike | None, wait_time: float
) -> None:
    """Let mmdet's visualisation hook draw predictions beside the ground truth."""
    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            "--show and --show-dir need mmdet's hook in the config: "
            'default_hooks = dict(visualization=dict(type="DetVisualizationHook"))'
        )
    hook.draw = True
    if show:
        hook.show = True
        hook.wait_time = wait_time
    if show_dir is not None:
        hook.test_out_dir = str(show_dir)


def _require_plain_annotations(config: Config) -> None:
    """Raises ValueError if pycocotools cannot read an annotation file of the test data."""
    for _, ann_file, _ in box_datasets(dict(test_dataloader=config.get('test_dataloader'))):
        for finding in check_encoding(ann_file) if ann_file.is_file() else ():
            raise ValueError(f'{finding.file}: {finding.detail}; {finding.remedy}')
