"""Who imports whom, and how long files are: read from the sources, so that layers stay layers."""

import ast
import functools
import graphlib
import sys
from pathlib import Path

import pytest
from forked import run_python

from ddetr_plugin.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'ddetr_plugin'
# Every module of models/ imports only those before it.
ORDER = (
    'boxes',
    'feature_levels',
    'layers.size_cache',
    'necks.simple_feature_pyramid',
    'layers.positional_encoding',
    'losses.match_costs',
    'losses.targets',
    'losses.assigner',
    'losses.prediction_sets',
    'losses.criterion',
    'layers.token_linear',
    'layers.attention',
    'layers.same_level_attention',
    'layers.feed_forward',
    'layers.transformer_layer',
    'layers.encoder',
    'layers.decoder',
    'heads.bbox_head',
    'heads.query_head',
    'heads.task_head',
    'heads.mask_targets',
    'heads.mask_head',
    'heads.panoptic_mask_head',
    'freezing',
    'detr.focal_detr_head',
    'detr.mask_detr',
    'detector',
)
# Of the package: a folder imports none of those that stand above it.
LAYERS = ('cli', 'apis', 'engine', 'models', 'checkpoints', 'ops')
# Lines, at most.
LONGEST_PYTHON, LONGEST_NATIVE = 300, 450
# What the components take from mmdet; backbones also extend mmdet's backbones, and `mask_detr` its
# DETR.
FROM_MMDET = (
    'mmdet.models.detectors.base',
    'mmdet.models.layers',
    'mmdet.models.task_modules.assigners',
    'mmdet.structures',
)


@functools.cache
def imports(path) -> list:
    """(module, name or None) of every import in a file, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path} has a relative import'
            found += [(node.module, alias.name) for alias in node.names]
    return found


def modules(path) -> set:
    """Names of modules that a file may load, with submodules imported by name."""
    names = set()
    for module, name in imports(path):
        names.add(module)
        if name and (ROOT / module.replace('.', '/') / f'{name}.py').exists():
            names.add(f'{module}.{name}')
    return names


def within(name, *packages) -> bool:
    return any(name == package or name.startswith(f'{package}.') for package in packages)


def third_party(path) -> set:
    tops = {name.split('.')[0] for name in modules(path)}
    return tops - set(sys.stdlib_module_names) - {'ddetr_plugin'}


def sources(folder):
    return sorted(folder.rglob('*.py'))


def files_by_module() -> dict:
    """Name -> file of every module of this repository, as its other files import it.

    Tools and tests import each other by bare names.
    """
    found = {}
    for folder in ('ddetr_plugin', 'tools', 'benchmarks', 'tests'):
        for path in sources(ROOT / folder):
            dotted = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
            name = path.stem if folder in ('tools', 'tests') else dotted.removesuffix('.__init__')
            if name != 'conftest':  # which nobody imports
                assert name not in found, f'{path} and {found[name]} have one name'
                found[name] = path
    return found


def local_modules(path, files) -> set:
    """Those of `files` that a file imports: submodules by name, else the package."""
    names = set()
    for module, name in imports(path):
        module = module.removeprefix('tools.')
        names.add(f'{module}.{name}' if f'{module}.{name}' in files else module)
    return names & files.keys()


def test_the_operator_needs_torch_and_nothing_else():
    for path in sources(PACKAGE / 'ops'):
        assert third_party(path) <= {'torch'}, path
        assert all(
            within(name, 'ddetr_plugin.ops')
            for name in modules(path)
            if within(name, 'ddetr_plugin')
        ), path


def test_the_operator_runs_where_there_is_no_mmengine():
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == 'mmengine' else find(name, *rest)
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmengine', 'mmdet', 'mmcv'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from ddetr_plugin.ops import ms_deform_attn
value = torch.ones(1, 4, 1, 1)
print(ms_deform_attn(value, [(2, 2)], None, torch.full((1, 1, 1, 1, 1, 2), 0.5),
                     torch.ones(1, 1, 1, 1, 1)).item())
"""
    done = run_python(code)
    assert done.stdout.strip() == '1.0', done.stderr


def test_the_registry_needs_mmengine_and_nothing_else():
    assert modules(PACKAGE / 'registry.py') == {'mmengine.registry'}


def test_the_metrics_extend_mmdets_and_know_nothing_of_models_but_their_error():
    for path in sources(PACKAGE / 'evaluation'):
        names = modules(path)
        ours = {name for name in names if within(name, 'ddetr_plugin')}
        assert all(
            within(
                name,
                'ddetr_plugin.evaluation',
                'ddetr_plugin.registry',
                'ddetr_plugin.models.losses.assigner',
            )
            for name in ours
        ), path
        assert all(
            within(name, 'mmdet.evaluation', 'mmdet.datasets.api_wrappers')
            for name in names
            if within(name, 'mmdet')
        ), path


def test_benchmarks_import_tools_and_tools_the_package_and_nobody_the_other_way_round():
    programs = [path.stem for path in sources(ROOT / 'tools')]
    outer = ('tests', 'conftest', 'benchmarks')
    for path in sources(ROOT / 'benchmarks'):
        assert not [name for name in modules(path) if within(name, 'tests', 'conftest')], path
    for path in sources(ROOT / 'tools') + sources(ROOT / 'configs'):
        assert not [name for name in modules(path) if within(name, *outer)], path
    for path in sources(PACKAGE):
        outside = [
            name for name in modules(path) if within(name, *outer, 'tools', 'configs', *programs)
        ]
        assert not outside, path


def test_no_modules_import_each_other_in_a_circle():
    files = files_by_module()
    graph = {name: local_modules(path, files) for name, path in files.items()}
    assert graph['benchmarks.op.peers'] >= {'benchmarks.op.cases'}
    assert 'ddetr_plugin.cli' in graph['demo']
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(' <- '.join(error.args[1]))


def test_no_file_is_too_long_to_read():
    """But for those that wait for being split."""
    python = [p for name in ('ddetr_plugin', 'tools', 'benchmarks') for p in sources(ROOT / name)]
    native = [p for p in (ROOT / 'ops').rglob('*') if p.suffix in ('.cpp', '.cu', '.cuh', '.h')]
    limits = dict.fromkeys(python, LONGEST_PYTHON) | dict.fromkeys(native, LONGEST_NATIVE)
    lengths = {path: len(path.read_text().splitlines()) for path in limits}
    too_long = {
        str(path.relative_to(ROOT)): f'{lines} lines, {limits[path]} are allowed'
        for path, lines in lengths.items()
        if lines > limits[path]
    }
    assert not too_long


def test_reading_data_needs_its_checks_and_how_images_are_read_and_nothing_else():
    allowed = ('ddetr_plugin.intake', 'ddetr_plugin.data_checks')
    allowed += ('ddetr_plugin.datasets.image_files',)
    for path in sources(PACKAGE / 'intake'):
        ours = [name for name in modules(path) if within(name, 'ddetr_plugin')]
        assert all(within(name, *allowed) for name in ours), path
    for path in sources(PACKAGE / 'data_checks'):
        assert not [name for name in modules(path) if within(name, 'ddetr_plugin.intake')], path


def test_every_component_module_has_its_place_in_the_order():
    folder = PACKAGE / 'models'
    files = {path.relative_to(folder).with_suffix('') for path in sources(folder)}
    # Backbones stand beside mmdet's, and are built by name as those are.
    found = {
        '.'.join(path.parts)
        for path in files
        if path.name != '__init__' and path.parts[0] != 'backbones'
    }
    assert found == set(ORDER)


@pytest.mark.parametrize('name', ORDER)
def test_a_component_imports_only_what_comes_before_it(name):
    earlier = {f'ddetr_plugin.models.{other}' for other in ORDER[: ORDER.index(name)]}
    allowed = earlier | {'ddetr_plugin.registry'}
    if name.startswith('layers.'):
        allowed |= {'ddetr_plugin.ops', 'ddetr_plugin.ops.dropout'}
    if name == 'detector':
        allowed |= {'ddetr_plugin.checkpoints', 'ddetr_plugin.checkpoints.convert_in_place'}
        allowed |= {'ddetr_plugin.config_levels'}
    path = PACKAGE / 'models' / f'{name.replace(".", "/")}.py'
    ours = {module for module in modules(path) if within(module, 'ddetr_plugin')}
    assert ours <= allowed


@pytest.mark.parametrize('folder', LAYERS)
def test_a_folder_imports_none_that_stands_above_it(folder):
    above = [f'ddetr_plugin.{name}' for name in LAYERS[: LAYERS.index(folder)]]
    for path in sources(PACKAGE / folder):
        assert not [name for name in modules(path) if within(name, *above)], path


def test_components_take_from_mmdet_base_classes_and_structures_only():
    for path in sources(PACKAGE / 'models'):
        allowed = FROM_MMDET
        if path.parent.name == 'backbones':
            allowed += ('mmdet.models.backbones',)
        if path.stem == 'mask_detr':
            allowed += ('mmdet.models.detectors.detr', 'mmdet.models.dense_heads')
        for name in modules(path):
            assert not within(name, 'mmdet') or within(name, *allowed), (path, name)
        assert third_party(path) <= {'torch', 'numpy', 'scipy', 'mmengine', 'mmcv', 'mmdet'}, path


def test_the_detector_builds_its_parts_by_config_and_imports_none_of_them():
    names = [
        name
        for module, name in imports(PACKAGE / 'models' / 'detector.py')
        if within(module, 'ddetr_plugin.models')
    ]
    assert names
    assert not [name for name in names if MODELS.get(name) is not None]
