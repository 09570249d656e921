"""Deformable DETR (arXiv:2010.04159) as registry components for MMDetection.

Put ``custom_imports = dict(imports=['ddetr_plugin'], allow_failed_imports=False)`` into a config
and name the components with their scope, ``type='ddetr_plugin.DeformableDETR'``. Importing the
package loads mmengine, but neither mmdet nor mmcv; the components come with their first use.
Without mmengine there is only `ddetr_plugin.ops`.

The import also lets mmdet load where mmcv has no compiled extension, lets ``torch.load`` read the
Runner's checkpoints safely, and lets configs inherit from ``ddetr_plugin::detr/NAME.py`` (see
`ddetr_plugin.compat`). Import it before mmdet, and before such a config is read: the config's own
``custom_imports`` come too late for its ``_base_``.
"""

import importlib.util

from ddetr_plugin.version import __version__

__all__ = ['__version__']

# `ddetr_plugin.ops` alone needs torch only.
if importlib.util.find_spec('mmengine') is not None:
    from ddetr_plugin import registry
    from ddetr_plugin.compat import (
        allow_runner_checkpoints,
        install_mmcv_stand_in,
        register_configs,
    )

    __all__ += ['registry']
    install_mmcv_stand_in()
    allow_runner_checkpoints()
    register_configs()
