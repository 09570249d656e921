"""The file of logged numbers, which a full disk must not turn into the end of a training."""

import logging
import os

from mmengine.logging import print_log
from mmengine.visualization import LocalVisBackend

from ddetr_plugin.registry import VISBACKENDS

__all__ = ['LenientVisBackend']


@VISBACKENDS.register_module()
class LenientVisBackend(LocalVisBackend):
    """mmengine's LocalVisBackend, which goes on without numbers that it cannot write.

    They are in the log on the console, too. The first that is lost is reported; every line that is
    in the file is whole.
    """

    _lost = False

    def _dump(self, value_dict: dict, file_path: str, file_format: str) -> None:
        size = os.path.getsize(file_path) if os.path.exists(file_path) else 0
        try:
            super()._dump(value_dict, file_path, file_format)
        except OSError as error:
            if os.path.exists(file_path):
                os.truncate(file_path, size)
            if not self._lost:
                print_log(
                    f'Numbers cannot be logged to {file_path}: {error}. The training goes on.',
                    logger='current',
                    level=logging.ERROR,
                )
            self._lost = True
        else:
            self._lost = False
