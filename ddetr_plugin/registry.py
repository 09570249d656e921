"""Registries of this package, children of mmengine's roots, in the scope ``ddetr_plugin``.

A config names our components with the prefix (``type='ddetr_plugin.DeformableDETR'``), so they
live beside mmdet's of the same name. The modules that register components are imported on the
first look-up; importing this file loads neither mmdet nor mmcv.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
)
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISBACKENDS as MMENGINE_VISBACKENDS
from mmengine.registry import Registry

__all__ = [
    'DATASETS',
    'HOOKS',
    'METRICS',
    'MODELS',
    'OPTIM_WRAPPERS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
    'RUNNERS',
    'STRATEGIES',
    'TASK_UTILS',
    'TRANSFORMS',
    'VISBACKENDS',
]

SCOPE = 'ddetr_plugin'

# Networks and everything built inside them: detector, transformer layers, attention, heads.
MODELS = Registry('model', parent=MMENGINE_MODELS, scope=SCOPE, locations=['ddetr_plugin.models'])
# Assigners and match costs.
TASK_UTILS = Registry(
    'task util', parent=MMENGINE_TASK_UTILS, scope=SCOPE, locations=['ddetr_plugin.models']
)
# How a step is computed and applied, for instance in mixed precision on a CPU.
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope=SCOPE,
    locations=['ddetr_plugin.engine'],
)
# Which parameters learn how fast.
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope=SCOPE,
    locations=['ddetr_plugin.engine'],
)
# How a training is shared out among processes, and the runner that goes with it.
RUNNERS = Registry(
    'runner', parent=MMENGINE_RUNNERS, scope=SCOPE, locations=['ddetr_plugin.engine']
)
STRATEGIES = Registry(
    'strategy', parent=MMENGINE_STRATEGIES, scope=SCOPE, locations=['ddetr_plugin.engine']
)
# Additions to the training loop, for instance the random state inside checkpoints.
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope=SCOPE, locations=['ddetr_plugin.engine'])
# Where logged numbers and pictures go.
VISBACKENDS = Registry(
    'visualization backend',
    parent=MMENGINE_VISBACKENDS,
    scope=SCOPE,
    locations=['ddetr_plugin.engine'],
)
# Pictures and their annotations.
DATASETS = Registry(
    'dataset', parent=MMENGINE_DATASETS, scope=SCOPE, locations=['ddetr_plugin.datasets']
)
# Steps of the data pipeline.
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope=SCOPE, locations=['ddetr_plugin.datasets']
)
# What predictions are scored by.
METRICS = Registry(
    'metric', parent=MMENGINE_METRICS, scope=SCOPE, locations=['ddetr_plugin.evaluation']
)
