"""The start-up of a Runner: for a training, a test, and everything that needs one."""

import copy
import os

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ddetr_plugin.compat import require_mmcv_operators
from ddetr_plugin.datasets import BrokenPictureError
from ddetr_plugin.engine.data_workers import drop_worker_settings
from ddetr_plugin.engine.host_memory import keep_freed_memory
from ddetr_plugin.engine.processes import allow_accumulation, join_gloo_processes
from ddetr_plugin.engine.resuming.resumption import ResumeError
from ddetr_plugin.engine.work_dir.checkpoint_files import CheckpointError
from ddetr_plugin.engine.work_dir.lock import WorkDirInUseError
from ddetr_plugin.models.losses.assigner import NotFiniteError

__all__ = ['EXPECTED_STOPS', 'build_runner']

# What ends a run for a reason of which the message says all.
EXPECTED_STOPS = (
    BrokenPictureError,
    CheckpointError,
    NotFiniteError,
    ResumeError,
    WorkDirInUseError,
)


class _Runner(Runner):
    """mmengine's Runner, for models of any library that freeze stages in `train()`.

    They have frozen them before a wrapper counts the parameters whose gradients it waits for.
    """

    def wrap_model(self, model_wrapper_cfg, model):
        model.train()
        return super().wrap_model(model_wrapper_cfg, model)


def build_runner(config: Config, local_rank: int = 0) -> Runner:
    """The Runner of a config that `load_config` has read, with the processes of a launcher joined.

    The config stays as it is; what has to be changed for this machine is in `runner.cfg`.
    Without a GPU, freed memory is kept for reuse, see `keep_freed_memory`.

    Raises:
        LaunchError: the launcher does not fit the machine or the environment.
        MissingMMCVOpError: the model has modules that need full mmcv, and this is mmcv-lite.
    """
    config = copy.deepcopy(config)
    drop_worker_settings(config)
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if not torch.cuda.is_available():
        keep_freed_memory()
    if config.launcher != 'none':
        allow_accumulation(config)
        if not torch.cuda.is_available():
            join_gloo_processes(config)
    if 'runner_type' in config:
        # It builds the model when the training starts; an operator that is missing raises then.
        return RUNNERS.build(config)
    runner = _Runner.from_cfg(config)
    require_mmcv_operators(runner.model)
    return runner
