"""From a command line to a Runner: what tools/train.py and tools/test.py share.

The functions that change a config are given one that `load_config` has just read from its file.
"""

import copy
import ctypes
import inspect
import os
import warnings
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ddetr_plugin.checkpoints import install_checkpoint_loader
from ddetr_plugin.compat import require_mmcv_operators, require_panopticapi
from ddetr_plugin.config_types import type_name
from ddetr_plugin.datasets import BrokenPictureError
from ddetr_plugin.engine.data_workers import drop_worker_settings
from ddetr_plugin.engine.hooks.atomic_checkpoint import CheckpointError
from ddetr_plugin.engine.resuming.resumption import ResumeError
from ddetr_plugin.engine.work_dir.lock import WorkDirInUseError
from ddetr_plugin.models.losses.assigner import NotFiniteError

__all__ = [
    'STOPPED',
    'add_common_options',
    'add_config_overrides',
    'build_runner',
    'enable_auto_scale_lr',
    'is_first',
    'keep_freed_memory',
    'leave_processes',
    'load_config',
    'require_checkpoint',
    'require_file',
    'warn_of_unread',
]


class _ConfigOptions(DictAction):
    """mmengine's key=value parser, with a readable message for what is not key=value."""

    def __call__(self, parser, namespace, values, option_string=None):
        for value in values:
            key, separator, _ = value.partition('=')
            if not separator or not key:
                parser.error(f'{option_string} takes key=value pairs, got {value!r}')
        super().__call__(parser, namespace, values, option_string)


class LaunchError(ValueError):
    """The launcher does not fit the machine or the environment."""


# What ends a run for a reason of which the message says all.
STOPPED = (BrokenPictureError, CheckpointError, NotFiniteError, ResumeError, WorkDirInUseError)
CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')
# Where launchers tell a process its number.
RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def add_common_options(parser):
    """Add the options that training and testing have in common to an argparse parser."""
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and results')
    add_config_overrides(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes of a distributed run (torchrun: pytorch)',
    )
    # Older torch launchers pass the local rank as an option, torchrun in the environment.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_config_overrides(parser):
    """Add --cfg-options to an argparse parser."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_ConfigOptions,
        metavar='KEY=VALUE',
        help='override config values, e.g. train_cfg.max_epochs=2 key="[a,b]" key=a,b',
    )


def require_file(path, what):
    """Raise FileNotFoundError if the local file `path` is missing; URLs pass unchecked."""
    if '://' not in str(path) and not Path(path).is_file():
        raise FileNotFoundError(f'{what} {path} does not exist (looked from {Path.cwd()})')


def require_checkpoint(path):
    """The same for weights, which may also be a folder as transformers saves it."""
    if not Path(path).is_dir():
        require_file(path, 'checkpoint')


def warn_of_unread(config, overrides):
    """Warn of overrides of a config's own variables, which were used while it was read.

    ``max_iters=100`` changes a name that nothing reads any more, not the loop that was made with
    it.

    Args:
        config: Config, as it was read.
        overrides: dict of dotted keys and values, as ``--cfg-options`` gives.
    """
    # What the Runner and its parts look up at the top level is of these kinds, or is named here.
    read = {*inspect.signature(Runner.__init__).parameters, 'find_unused_parameters'}
    for key in overrides:
        root = key.split('.')[0]
        if root in config and root not in read and not isinstance(config[root], dict):
            warnings.warn(
                f'--cfg-options {key}=... changes a variable of the config that nothing reads any '
                'more; name the place where its value is used, such as train_cfg.max_iters',
                stacklevel=2,
            )


def load_config(path, overrides=None, work_dir=None, launcher='none'):
    """Read a config file and apply the common options.

    Args:
        path: the config file.
        overrides: dict of dotted keys and values, as ``--cfg-options`` gives.
        work_dir: output folder; default the config's own, else ``work_dirs/<config name>``.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
    Returns:
        Config, not shared with anyone.
    Raises:
        FileNotFoundError: there is no such config.
        ValueError: it is a file of another kind.
    """
    require_file(path, 'config')
    if Path(path).suffix not in CONFIG_SUFFIXES:
        raise ValueError(
            f'a config ends with {", ".join(CONFIG_SUFFIXES)}; {path} is a file of another kind'
        )
    config = Config.fromfile(path)
    if overrides:
        warn_of_unread(config, overrides)
        config.merge_from_dict(overrides)
    config.launcher = launcher
    if work_dir is not None:
        config.work_dir = str(work_dir)
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs') / Path(path).stem)
    return config


def enable_auto_scale_lr(config):
    """Turn on mmengine's linear scaling: every lr times (processes * batch_size / base).

    Raises:
        ValueError: the config does not say for which batch size its learning rate is meant.
    """
    settings = config.get('auto_scale_lr')
    if not settings or 'base_batch_size' not in settings:
        raise ValueError(
            '--auto-scale-lr needs the batch size that the learning rate was chosen for; add '
            'auto_scale_lr = dict(enable=False, base_batch_size=32) to the config'
        )
    settings.enable = True


def is_first(config):
    """Whether this process speaks for all, before any has met the others."""
    return os.environ.get(RANKS.get(config.get('launcher'), ''), '0') == '0'


def _join_gloo_processes(config):
    """Start a distributed run without GPUs; mmengine's own start-up needs CUDA."""
    if config.launcher != 'pytorch':
        raise LaunchError(
            f'--launcher {config.launcher} needs GPUs; without them start with torchrun and '
            '--launcher pytorch'
        )
    if 'RANK' not in os.environ:
        raise LaunchError('--launcher pytorch works under torchrun only (RANK is not set)')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    # As Runner's default, except device_ids, which must be None for a model on the CPU.
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False),
    )
    wrapper.update(config.get('model_wrapper_cfg') or {})
    if type_name(wrapper).endswith('DistributedDataParallel'):
        wrapper['device_ids'] = None
    config.model_wrapper_cfg = wrapper


def _allow_accumulation(config):
    """Give up DDP's static graph where gradients of several iterations make one step.

    With it DDP plans its reductions in the first iteration, which then has none; torch ends with an
    internal error. Reductions overlap the backward pass without it, too.
    """
    wrapper = config.get('model_wrapper_cfg') or {}
    counts = (config.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if counts > 1 and wrapper.get('static_graph'):
        config.model_wrapper_cfg = dict(wrapper, static_graph=False)


def leave_processes():
    """End a distributed run: all processes meet, then each leaves the others.

    Its threads must end before the interpreter does, which else may abort, and no process may be
    gone while another still talks to it. Does nothing in a run of one process.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def keep_freed_memory():
    """Let glibc keep freed blocks for reuse instead of returning them to the kernel.

    On a CPU a training step allocates and frees hundreds of megabytes in large blocks, and glibc
    asks the kernel for each anew: clearing the pages takes a tenth to a seventh of the step.
    Before this process forks, as for data workers, the free blocks do go back: what the child
    inherits stays its own for as long as it lives, and the free blocks of a training can be several
    hundred megabytes. Does nothing where the C library is another one.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, 'mallopt') and hasattr(library, 'malloc_trim'):
        m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
        library.mallopt(m_mmap_threshold, 1 << 30)
        library.mallopt(m_trim_threshold, (1 << 31) - 1)
        os.register_at_fork(before=lambda: library.malloc_trim(0))


class _Runner(Runner):
    """mmengine's Runner, for models of any library that freeze stages in `train()`.

    They have frozen them before a wrapper counts the parameters whose gradients it waits for.
    """

    def wrap_model(self, model_wrapper_cfg, model):
        model.train()
        return super().wrap_model(model_wrapper_cfg, model)


def build_runner(config, local_rank=0):
    """The Runner of a config made by `load_config`, with the processes of a launcher joined.

    The config stays as it is; what has to be changed for this machine is in `runner.cfg`.
    Without a GPU, freed memory is kept for reuse, see `keep_freed_memory`.

    Raises:
        LaunchError: the launcher does not fit the machine or the environment.
        MissingMMCVOpError: the model has modules that need full mmcv, and this is mmcv-lite.
        MissingPanopticAPIError: the config evaluates panoptic segmentation without panopticapi.
    """
    require_panopticapi(config.to_dict())
    config = copy.deepcopy(config)
    drop_worker_settings(config)
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    # Also for models that have nothing of ours.
    install_checkpoint_loader()
    if not torch.cuda.is_available():
        keep_freed_memory()
    if config.launcher != 'none':
        _allow_accumulation(config)
        if not torch.cuda.is_available():
            _join_gloo_processes(config)
    if 'runner_type' in config:
        # It builds the model when the training starts; an operator that is missing raises then.
        return RUNNERS.build(config)
    runner = _Runner.from_cfg(config)
    require_mmcv_operators(runner.model)
    return runner
