"""Deformable DETR (arXiv:2010.04159) as registry components for MMDetection.

Put ``custom_imports = dict(imports=['ddetr_plugin'], allow_failed_imports=False)`` into a config
and name the components with their scope, ``type='ddetr_plugin.DeformableDETR'``. Importing the
package loads mmengine, but neither mmdet nor mmcv; the components come with their first use.
"""

from ddetr_plugin import registry
from ddetr_plugin.version import __version__

__all__ = ['__version__', 'registry']
