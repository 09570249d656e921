"""The detector on a plain ViT with a simple feature pyramid, as its config builds it."""

import pytest
import torch
from builders import batch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from benchmarks.table.flops import count_parameters, model_multiply_adds
from ddetr_plugin.config_files import find_config
from ddetr_plugin.ops import native_load_error
from ddetr_plugin.registry import MODELS

FILE = find_config('deformable-detr_vit-small-p16_16xb2-50e_coco')


@pytest.fixture(scope='module')
def config():
    return Config.fromfile(FILE)


@pytest.fixture(scope='module')
def model(config):
    """Of full size, with random weights: `init_weights` would fetch the pretrained ones."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(config.model)


def test_it_has_the_parameters_of_vit_small_and_of_deformable_detr(model):
    block = 4 * 384 + 384 * 4 * 384 + 4 * 384 + 2 * 384 * 1536 + 1536 + 384
    vit = 16 * 16 * 3 * 384 + 384 + 384 + 197 * 384 + 12 * block + 2 * 384
    assert vit == 21_665_664  # of DeiT-S, 22,050,664, without the classifier's 385,000
    assert count_parameters(model.backbone) == (vit, vit)
    trained, _ = count_parameters(model)
    neck = sum(p.numel() for p in model.neck.parameters())
    assert neck == 3_002_560
    # Of Deformable DETR's 39,844,438 all but ResNet-50's trained ones and its neck's.
    shared = 39_844_438 - 23_232_512 - 5_639_168
    assert trained == vit + neck + shared == 35_640_982


@pytest.mark.skipif(native_load_error() is not None, reason='the native operator is not built')
def test_a_picture_costs_384_billion_multiply_adds_two_fifths_of_them_the_vits_attention(model):
    counts = model_multiply_adds(model.eval(), 800, 1333)
    patches, width, channels = 50 * 84, 384, 256
    tokens = patches + 1
    attention = 12 * 2 * tokens**2 * width
    vit = patches * 768 * width + 12 * tokens * 12 * width**2 + attention
    assert vit == 253_088_916_480
    levels = {4 * patches: width // 2, patches: width, 25 * 42: width, 13 * 21: width}
    neck = patches * width * (width // 2) * 4  # the deconvolution
    neck += sum(n * channels * (inputs + 9 * channels) for n, inputs in levels.items())
    # The encoder's and the decoder's, as with a ResNet.
    shared = 114_726_000_000
    # Left out above: the resampling of positions.
    assert sum(counts.values()) == pytest.approx(vit + neck + shared, rel=2e-4)
    assert sum(counts.values()) / 1e9 == pytest.approx(383.7, abs=0.05)
    assert 0.4 < attention / sum(counts.values()) < 0.45


def test_levels_have_the_strides_of_deformable_detr(model):
    maps = model.eval().extract_feat(torch.zeros(1, 3, 128, 192))
    shapes = [(1, 256, 128 // stride, 192 // stride) for stride in (8, 16, 32, 64)]
    assert [tuple(m.shape) for m in maps] == shapes


def test_a_picture_that_fills_no_whole_patches_gets_whole_maps(config):
    divisor = config.model.data_preprocessor.pad_size_divisor
    assert divisor % config.model.backbone.patch_size == 0
    assert config.model.neck.in_channels == config.model.backbone.embed_dims


def test_it_trains_a_step_and_predicts(config, model):
    inputs, samples = batch(image_shapes=((64, 96), (80, 71)))
    model.train()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = model.loss(inputs, samples)
    assert all(loss.isfinite() for loss in losses.values())
    wrapper.update_params(sum(losses.values()))
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    # Positions meet weights that start at zero, so that the first gradient is zero, too.
    assert still == {'encoder.level_embed'}
    with torch.no_grad():
        results = model.eval().predict(inputs, samples)
    for result in results:
        assert len(result.pred_instances) == 100
        assert result.pred_instances.bboxes.isfinite().all()
        assert result.pred_instances.scores.isfinite().all()


def test_lower_blocks_learn_slower_and_positions_do_not_decay(config, model):
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    groups = {
        id(parameter): (group['lr'], group['weight_decay'])
        for group in wrapper.param_groups
        for parameter in group['params']
    }
    found = {name: groups[id(parameter)] for name, parameter in model.named_parameters()}
    for name, (rate, decay) in found.items():
        if name.startswith('backbone.blocks.'):
            wanted = 1e-4 * 0.7 ** (11 - int(name.split('.')[2]))
        elif name.startswith('backbone.norm.'):
            wanted = 1e-4
        elif name.startswith('backbone.'):
            wanted = 1e-4 * 0.7**12
        else:
            slow = 'sampling_offsets' in name or 'reference_points' in name
            wanted = 2e-5 if slow else 2e-4
        assert rate == pytest.approx(wanted), name
        kept = name in ('backbone.cls_token', 'backbone.pos_embed')
        assert decay == (0.0 if kept else 1e-4), name
