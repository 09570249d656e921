"""Lets mmengine find this package's configs: ``_base_ = 'ddetr_plugin::detr/NAME.py'``.

mmengine resolves ``name::`` for the packages of a table of its own, below the folder in which pip
keeps the package's version. Here it resolves our name, too, in a checkout and in an editable
installation as well. Read with mmengine 0.10.7 and onedl-mmengine 0.10.12.
"""

import functools

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from ddetr_plugin.config_files import PREFIX, find_config

__all__ = ['register_configs']

NAME = PREFIX.removesuffix('::')
# Types without a scope are mmdet's in our configs; ours are named with their scope.
SCOPE = 'mmdet'


def register_configs() -> None:
    """Make our configs known to mmengine, for the whole process.

    Has to come before a config is read that inherits from one of them; the config's own
    `custom_imports` are imported too late. Calling it again changes nothing.
    """
    if NAME in MODULE2PACKAGE:
        return
    # For what looks up more than a `_base_`, such as mmengine.hub.get_config.
    MODULE2PACKAGE[NAME] = NAME
    resolve = getattr(Config, '_get_cfg_path', None)
    if resolve is None:  # another mmengine, which then reads its table in a way of its own
        return

    @functools.wraps(resolve)
    def resolve_ours(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            return str(find_config(cfg_path)), SCOPE
        return resolve(cfg_path, filename)

    Config._get_cfg_path = staticmethod(resolve_ours)
