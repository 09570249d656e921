"""Data as annotation tools export it, read as trainings need it; the originals stay as they are."""

from ddetr_plugin.intake.changes import Changes
from ddetr_plugin.intake.configs import ConfigRepairs, repair_config
from ddetr_plugin.intake.folder import DataFolder, read_folder, read_split
from ddetr_plugin.intake.held_out import split_off_validation
from ddetr_plugin.intake.tree import Tree

__all__ = [
    'Changes',
    'ConfigRepairs',
    'DataFolder',
    'Tree',
    'read_folder',
    'read_split',
    'repair_config',
    'split_off_validation',
]
