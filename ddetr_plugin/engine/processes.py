"""The processes of a distributed run, on GPUs or on CPUs alone."""

import os

import torch
from mmengine.config import Config

from ddetr_plugin.config_types import type_name

__all__ = [
    'LaunchError',
    'allow_accumulation',
    'is_first',
    'join_gloo_processes',
    'leave_processes',
]

# Where launchers tell a process its number.
RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


class LaunchError(ValueError):
    """The launcher does not fit the machine or the environment."""


def is_first(config: Config) -> bool:
    """Whether this process speaks for all, before any has met the others."""
    return os.environ.get(RANKS.get(config.get('launcher'), ''), '0') == '0'


def join_gloo_processes(config: Config) -> None:
    """Start a distributed run without GPUs; mmengine's own start-up needs CUDA.

    Args:
        config: its `model_wrapper_cfg` is replaced.

    Raises:
        LaunchError: the launcher is another one than torchrun, or did not start this process.
    """
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


def allow_accumulation(config: Config) -> None:
    """Give up DDP's static graph where gradients of several iterations make one step.

    With it DDP plans its reductions in the first iteration, which then has none; torch ends with an
    internal error. Reductions overlap the backward pass without it, too.

    Args:
        config: its `model_wrapper_cfg` is replaced where need be.
    """
    wrapper = config.get('model_wrapper_cfg') or {}
    counts = (config.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if counts > 1 and wrapper.get('static_graph'):
        config.model_wrapper_cfg = dict(wrapper, static_graph=False)


def leave_processes() -> None:
    """End a distributed run: all processes meet, then each leaves the others.

    Its threads must end before the interpreter does, which else may abort, and no process may be
    gone while another still talks to it. Does nothing in a run of one process.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
