"""Our registries beside mmdet's."""

import mmengine.registry as roots
import pytest
from forked import run_python

from ddetr_plugin import registry


@pytest.mark.parametrize('name', registry.__all__)
def test_every_registry_is_a_child_of_the_root_of_the_same_name(name):
    ours = getattr(registry, name)
    assert ours.scope == 'ddetr_plugin'
    assert ours.parent is getattr(roots, name)


COMPONENTS = {
    'MODELS': 'DeformableDETR',
    'TASK_UTILS': 'HungarianAssigner',
    'OPTIM_WRAPPERS': 'AutocastOptimWrapper',
    'HOOKS': 'RandomStateHook',
    'TRANSFORMS': 'OfficialResize',
}


def test_prefixed_names_are_found_from_the_roots_after_importing_the_package_alone():
    code = 'import ddetr_plugin, mmengine.registry as roots\n' + '\n'.join(
        f'print(roots.{root}.get("ddetr_plugin.{name}").__name__)'
        for root, name in COMPONENTS.items()
    )
    done = run_python(code)
    assert done.stdout.split() == list(COMPONENTS.values()), done.stderr


def test_mmdet_keeps_its_own_deformable_detr():
    from mmdet.registry import MODELS as MMDET_MODELS

    theirs = MMDET_MODELS.get('DeformableDETR')
    ours = MMDET_MODELS.get('ddetr_plugin.DeformableDETR')
    assert theirs.__module__.startswith('mmdet.')
    assert ours.__module__.startswith('ddetr_plugin.')
