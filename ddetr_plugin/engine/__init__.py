"""How training runs: mixed precision, sharding, exact resumption, processes and memory."""

from ddetr_plugin.engine.hooks.atomic_checkpoint import AtomicCheckpointHook
from ddetr_plugin.engine.hooks.bad_numbers import BadNumberHook
from ddetr_plugin.engine.hooks.broken_pictures import BrokenPictureHook
from ddetr_plugin.engine.hooks.foreign_checkpoints import ForeignCheckpointHook
from ddetr_plugin.engine.hooks.random_state import RandomStateHook
from ddetr_plugin.engine.hooks.train_clock import TrainClockHook
from ddetr_plugin.engine.optimizers.autocast import AutocastOptimWrapper
from ddetr_plugin.engine.optimizers.parameter_groups import MergedGroupsConstructor
from ddetr_plugin.engine.resuming.resumption import ResumeError
from ddetr_plugin.engine.sharding import ShardingRunner, ShardingStrategy
from ddetr_plugin.engine.work_dir.checkpoint_files import CheckpointError
from ddetr_plugin.engine.work_dir.lenient_log import LenientVisBackend
from ddetr_plugin.engine.work_dir.lock import WorkDirInUseError

__all__ = [
    'AtomicCheckpointHook',
    'AutocastOptimWrapper',
    'BadNumberHook',
    'BrokenPictureHook',
    'CheckpointError',
    'ForeignCheckpointHook',
    'LenientVisBackend',
    'MergedGroupsConstructor',
    'RandomStateHook',
    'ResumeError',
    'ShardingRunner',
    'ShardingStrategy',
    'TrainClockHook',
    'WorkDirInUseError',
]
