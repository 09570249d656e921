"""How training runs: mixed precision, sharding, exact resumption, start-up of the tools."""

from ddetr_plugin.engine.autocast import AutocastOptimWrapper
from ddetr_plugin.engine.bad_numbers import BadNumberHook
from ddetr_plugin.engine.broken_pictures import BrokenPictureHook
from ddetr_plugin.engine.checkpoint_hook import AtomicCheckpointHook, CheckpointError
from ddetr_plugin.engine.foreign_checkpoints import ForeignCheckpointHook
from ddetr_plugin.engine.parameter_groups import MergedGroupsConstructor
from ddetr_plugin.engine.random_state import RandomStateHook
from ddetr_plugin.engine.resumption import ResumeError
from ddetr_plugin.engine.scalar_log import LenientVisBackend
from ddetr_plugin.engine.sharding import ShardingRunner, ShardingStrategy
from ddetr_plugin.engine.train_clock import TrainClockHook
from ddetr_plugin.engine.work_dir_lock import WorkDirInUseError

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
