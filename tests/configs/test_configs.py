"""Every config: builds, twice, unchanged; parameter counts; inheritance; the paper's recipe."""

import ast
import copy
from collections import defaultdict

import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from ddetr_plugin.apis import list_configs
from ddetr_plugin.checkpoints import Source, export, to_ours
from ddetr_plugin.config_files import config_files, find_config
from ddetr_plugin.registry import MODELS

CONFIGS = list(config_files())
RECORDS = {record.name: record for record in list_configs()}
BASE = 'deformable-detr_r50_16xb2-50e_coco.py'
REFINE = 'deformable-detr-refine_r50_16xb2-50e_coco.py'
TWO_STAGE = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
SINGLE_SCALE = 'deformable-detr_r50-single-scale_16xb2-50e_coco.py'
DC5 = 'deformable-detr_r50-dc5-single-scale_16xb2-50e_coco.py'
MASKS = 'deformable-detr-masks_r50_16xb2-50e_coco.py'
PANOPTIC = 'deformable-detr-panoptic_r50_16xb2-50e_coco.py'
DETR_MASKS = 'detr-masks_r50_16xb4-500e_coco.py'
DETR_PANOPTIC = 'detr-panoptic_r50_16xb4-500e_coco.py'
# Trainable parameters of the official models, with 80 classes and with the official 91.
PARAMETERS = {
    BASE: (39_844_438, 39_847_265),
    REFINE: (40_610_298, 40_627_260),
    TWO_STAGE: (40_939_340, 40_959_129),
    SINGLE_SCALE: (33_841_366, 33_844_193),
    DC5: (33_841_366, 33_844_193),
}
R50 = tuple(PARAMETERS)
GUARDS = {
    'ddetr_plugin.LoadImageChecked',
    'ddetr_plugin.AtomicCheckpointHook',
    'ddetr_plugin.RandomStateHook',
    'ddetr_plugin.BrokenPictureHook',
    'ddetr_plugin.BadNumberHook',
    'ddetr_plugin.LenientVisBackend',
}
VARIANTS = dict(zip(R50, ('base', 'refine', 'two-stage', 'single-scale', 'single-scale')))


def build(config, device='meta'):
    """The model of a config; on 'meta' without memory for its weights."""
    # mmdet's detectors, unlike ours, write into the config that they are built from.
    ours = config.model.type.startswith('ddetr_plugin.')
    model = config.model if ours else copy.deepcopy(config.model)
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device(device):
        return MODELS.build(model)


def count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_builds_twice_from_the_same_object_and_stays_as_it_is(name):
    config = Config.fromfile(find_config(name))
    before = copy.deepcopy(config.to_dict())
    # mmdet's EfficientNet reads numbers from tensors while it is built.
    device = 'cpu' if 'EfficientNet' in config.model.backbone.type else 'meta'
    first, second = build(config, device), build(config, device)
    assert config.to_dict() == before
    # What the index of models says, and with it the tables of the folders.
    assert count(first) == count(second) == RECORDS[name].parameters


@pytest.mark.parametrize('name', CONFIGS)
def test_every_transform_of_a_config_builds(name):
    config = Config.fromfile(find_config(name))
    pipelines = [
        config[f'{split}_dataloader'].dataset.pipeline
        for split in ('train', 'val', 'test')
        if f'{split}_dataloader' in config
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        for step in sum(pipelines, []):
            assert TRANSFORMS.build(step) is not None


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_names_its_scope_and_import_and_what_guards_its_training(name):
    config = Config.fromfile(find_config(name))
    assert {
        config.train_dataloader.dataset.pipeline[0].type,
        config.default_hooks.checkpoint.type,
        *(hook.type for hook in config.custom_hooks),
        *(backend.type for backend in config.visualizer.vis_backends),
    } >= GUARDS
    assert config.default_scope == 'mmdet'
    assert config.custom_imports.imports == ['ddetr_plugin']
    assert not config.custom_imports.allow_failed_imports


@pytest.mark.parametrize('name', R50)
def test_the_models_have_the_published_numbers_of_parameters(name):
    config = Config.fromfile(find_config(name))
    classes_80, classes_91 = PARAMETERS[name]
    assert count(build(config)) == classes_80
    changes = {'model.bbox_head.num_classes': 91}
    if name == TWO_STAGE:
        changes['model.query_head.num_classes'] = 91
    config.merge_from_dict(changes)
    assert count(build(config)) == classes_91


def test_masks_and_segments_add_the_parameters_of_detrs_mask_head():
    linears = 2 * (256 + 1) * 256
    widths = [(264, 264), (264, 128), (128, 64), (64, 32), (32, 16)]
    convs = sum((9 * i + 1 + 2) * o for i, o in widths) + 9 * 16 + 1  # 2: of a norm
    adapters = sum((i + 1) * o for i, o in [(1024, 128), (512, 64), (256, 32)])
    head = linears + convs + adapters
    for detector, masks, panoptic, total in (
        (BASE, MASKS, PANOPTIC, 41_178_095),
        ('detr_r50_16xb4-500e_coco.py', DETR_MASKS, DETR_PANOPTIC, 42_633_198),
    ):
        detector, masks, panoptic = (
            count(build(Config.fromfile(find_config(name)))) for name in (detector, masks, panoptic)
        )
        assert masks == detector + head == total
        # 53 kinds of stuff are rows of the classifier.
        assert panoptic == total + 53 * (256 + 1)


def test_panoptic_differs_from_masks_in_classes_data_and_the_best_checkpoint_only():
    masks, panoptic = (Config.fromfile(find_config(name)).to_dict() for name in (MASKS, PANOPTIC))
    assert set(differences(masks['model'], panoptic['model'])) == {
        'bbox_head.num_classes',
        'mask_head.type',
        'mask_head.num_things',
        'mask_head.num_classes',
    }
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'custom_hooks'):
        assert masks[key] == panoptic[key]
    # The augmentation is the same, too.
    pipelines = [c['train_dataloader']['dataset']['pipeline'] for c in (masks, panoptic)]
    assert [i for i, (a, b) in enumerate(zip(*pipelines)) if a != b] == [1]


@pytest.mark.parametrize('name', R50)
def test_official_weights_of_full_size_fit_the_configs(name):
    """91 rows become 80; every tensor has its place and shape."""
    config = Config.fromfile(find_config(name))
    target = build(config).state_dict()
    rows = {'bbox_head': {'num_classes': 91}}
    if name == TWO_STAGE:
        rows['query_head'] = {'num_classes': 91}
    config.merge_from_dict({'model': rows})
    state = export(build(config).state_dict(), 'official')
    converted = to_ours(Source(state, {}, None, []), target=target)
    assert not converted.problems
    assert converted.architecture.variant == VARIANTS[name]
    assert {k: v.shape for k, v in converted.state.items()} == {
        k: v.shape for k, v in target.items() if not k.endswith('num_batches_tracked')
    }


def bases(path) -> list:
    """Files that a config file names as its `_base_`, and names of mmdet's own."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            value = ast.literal_eval(node.value)
            names = [value] if isinstance(value, str) else value
            # mmdet's own configs, such as mmdet::_base_/models/x.py, count as one.
            return [name if '::' in name else path.parent / name for name in names]
    return []


def depth(path) -> int:
    return 0 if isinstance(path, str) else max((1 + depth(base) for base in bases(path)), default=0)


@pytest.mark.parametrize('name', CONFIGS)
def test_inheritance_is_at_most_three_deep(name):
    """As mmdet asks of its own; three where a small model is another with its own numbers."""
    assert 1 <= depth(find_config(name)) <= (3 if name == 'own_images' else 2)


@pytest.mark.parametrize('name', [REFINE, TWO_STAGE])
def test_a_variant_of_the_paper_is_at_most_ten_lines(name):
    assert bases(find_config(name)) == [find_config(BASE)]
    lines = find_config(name).read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 10


def differences(ours, theirs, path=''):
    """Dotted keys at which two configs differ."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [] if ours == theirs else [path]
    found = []
    for key in {**ours, **theirs}:
        found += differences(ours.get(key), theirs.get(key), f'{path}.{key}'.lstrip('.'))
    return found


def test_variants_differ_from_the_base_in_what_the_paper_says_and_nothing_else():
    base, refine, two_stage = (
        Config.fromfile(find_config(name)).to_dict() for name in (BASE, REFINE, TWO_STAGE)
    )
    refinement = ['model.decoder.refine', 'model.bbox_head.share_branches']
    assert differences(base, refine) == refinement
    assert differences(refine, two_stage) == [
        'model.query_head.type',
        'model.query_head.num_classes',
        'model.bbox_head.initial_size_logit',
    ]


@pytest.mark.parametrize('name', R50)
def test_backbone_offsets_and_reference_points_learn_ten_times_slower(name):
    config = Config.fromfile(find_config(name))
    model = build(config)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    groups = {
        id(parameter): group
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    seen = defaultdict(set)
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kinds = ('backbone', 'sampling_offsets', 'reference_points')
        kind = next((kind for kind in kinds if kind in parameter_name), 'other')
        group = groups[id(parameter)]
        seen[kind].add((round(group['lr'], 9), group['weight_decay']))
    slow, fast = {(2e-5, 1e-4)}, {(2e-4, 1e-4)}
    expected = {'backbone': slow, 'sampling_offsets': slow, 'other': fast}
    if name != TWO_STAGE:
        expected['reference_points'] = slow
    assert seen == expected


@pytest.mark.parametrize('name', R50)
def test_the_schedule_is_that_of_the_paper(name):
    config = Config.fromfile(find_config(name))
    optimizer = dict(type='AdamW', lr=2e-4, weight_decay=1e-4, fused=True)
    assert config.optim_wrapper.optimizer == optimizer
    assert config.optim_wrapper.clip_grad.max_norm == 0.1
    assert config.train_cfg.max_epochs == 50
    (schedule,) = config.param_scheduler
    assert (schedule.milestones, schedule.gamma) == ([40], 0.1)
    assert config.train_dataloader.batch_size * 16 == config.auto_scale_lr.base_batch_size == 32
    assert not config.auto_scale_lr.enable


@pytest.mark.parametrize('name', R50)
def test_the_first_layers_and_every_batch_norm_of_the_backbone_are_frozen(name):
    model = build(Config.fromfile(find_config(name)))
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained
    assert not [n for n in trained if n.startswith(('conv1', 'layer1'))]
    assert not [n for n in trained if '.bn' in n or 'downsample.1' in n]
