"""The detector as a whole: modes, padding, configs, initial values, transfers."""

import copy
import math

import pytest
import torch
from builders import VARIANTS, batch, build, initialise, tiny_config
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData
from rounding import assert_as_near_as_rounding_allows
from transfers import count_transfers

from ddetr_plugin.models import MSDeformAttn
from ddetr_plugin.models.feature_levels import FeatureLevels, flatten_levels
from ddetr_plugin.registry import MODELS


@pytest.fixture(scope='module', params=VARIANTS)
def model(request):
    return build(tiny_config(request.param)).eval()


STRIDES = (8, 16, 32, 64)


@pytest.mark.parametrize('shape', [(64, 128), (57, 90), (128, 33)])
def test_a_picture_alone_and_padded_in_a_batch_gives_the_same_logits_and_boxes(
    model, shape, monkeypatch
):
    """From the feature maps on: convolutions and group norms see the padding in every DETR."""
    inputs, samples = batch(image_shapes=(shape, (128, 192)))
    alone = [
        torch.randn(1, 32, *(math.ceil(side / stride) for side in shape)) for stride in STRIDES
    ]
    together = [torch.randn(2, 32, 128 // stride, 192 // stride) for stride in STRIDES]
    for small, large in zip(alone, together):
        large[:1, :, : small.shape[2], : small.shape[3]] = small
    results = []
    for maps, count in ((alone, 1), (together, 2)):
        monkeypatch.setattr(model, 'extract_maps', lambda pictures, maps=maps: ((), maps))
        height, width = shape if count == 1 else (128, 192)
        with torch.no_grad():
            results.append(model.forward_batch(inputs[:count, :, :height, :width], samples[:count]))
    first, second = results
    # With an invalid proposal among the queries their order would be a matter of chance.
    assert (first[2].reference < 1).all()
    for ours, wanted in zip(second[:2], first[:2]):
        assert (ours[:, :1] - wanted).abs().max() < 1e-4
    assert (second[2].reference[:1] - first[2].reference).abs().max() < 1e-4


def test_what_stands_in_the_padding_of_the_features_does_not_matter(model):
    inputs, samples = batch()
    with torch.no_grad():
        maps = [m.clone() for m in model.extract_feat(inputs)]
        results = []
        for filling in (0.0, 30.0):
            levels = FeatureLevels.from_images(
                [m.shape[-2:] for m in maps], (80, 96), [(64, 96), (80, 72)], inputs.device
            )
            for m, mask in zip(maps, levels.level_masks()):
                m.masked_fill_(mask[:, None], filling)
            pos = [model.positional_encoding(mask, None) for mask in levels.level_masks()]
            memory = model.encoder(flatten_levels(maps), flatten_levels(pos), levels)
            queries = model.query_head(memory, levels)
            decoded = model.decoder(*queries[:3], memory, levels, model.bbox_head.regress)
            results.append(decoded)
    for first, second in zip(*results):
        torch.testing.assert_close(first, second)


def test_the_modes_tensor_predict_and_loss_agree(model):
    inputs, samples = batch()
    with torch.no_grad():
        logits, boxes = model(inputs, samples, mode='tensor')
        predicted = model(inputs, samples, mode='predict')
        losses = model(inputs, samples, mode='loss')
    assert logits.shape == (2, 2, 12, 5)
    assert boxes.shape == (2, 2, 12, 4)
    assert predicted is not None
    metas = [sample.metainfo for sample in samples]
    expected = model.bbox_head.predict(logits[-1], boxes[-1], metas)
    for sample, wanted in zip(predicted, expected):
        assert torch.equal(sample.pred_instances.bboxes, wanted.bboxes)
        assert torch.equal(sample.pred_instances.scores, wanted.scores)
        assert 'gt_instances' in sample
    names = {'loss_cls', 'loss_bbox', 'loss_iou', 'd0.loss_cls', 'd0.loss_bbox', 'd0.loss_iou'}
    enc = {f'enc_{name}' for name in ('loss_cls', 'loss_bbox', 'loss_iou')}
    assert names <= set(losses) <= names | enc
    with pytest.raises(RuntimeError, match='Invalid mode'):
        model(inputs, samples, mode='guess')


def test_boxes_are_predicted_in_pixels_of_the_original_picture(model):
    inputs, samples = batch()
    with torch.no_grad():
        original = model.predict(inputs, samples)[1].pred_instances.bboxes.clone()
        scaled = model.predict(inputs, samples, rescale=False)[1].pred_instances.bboxes
    torch.testing.assert_close(original, scaled * 2)  # scale_factor is 0.5


def test_without_samples_nothing_is_padding(model):
    inputs, samples = batch(image_shapes=((64, 96), (64, 96)))
    with torch.no_grad():
        for ours, wanted in zip(model(inputs), model(inputs, samples)):
            torch.testing.assert_close(ours, wanted)


def test_training_steps_reduce_the_loss():
    model = build(tiny_config('two-stage')).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    inputs, samples = batch()
    totals = []
    for _ in range(12):
        total = sum(model.loss(inputs, samples).values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]


def test_the_data_preprocessor_feeds_pictures_of_different_sizes(model):
    pictures = [torch.randint(256, (3, 50, 70)).byte(), torch.randint(256, (3, 64, 40)).byte()]
    samples = []
    for picture in pictures:
        height, width = picture.shape[1:]
        metainfo = dict(
            img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0)
        )
        sample = DetDataSample(metainfo=metainfo)
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[5.0, 5, 30, 30]]), labels=torch.tensor([2])
        )
        samples.append(sample)
    with torch.no_grad():
        results = model.test_step(dict(inputs=pictures, data_samples=samples))
    assert [len(sample.pred_instances) for sample in results] == [50, 50]


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_config_builds_twice_and_is_not_changed(variant):
    config = tiny_config(variant)
    before = copy.deepcopy(config.to_dict())
    first, second = MODELS.build(config), MODELS.build(config)
    assert config.to_dict() == before
    assert first.state_dict().keys() == second.state_dict().keys()


def test_a_model_without_a_criterion_predicts_and_says_why_it_has_no_loss():
    config = tiny_config()
    config.pop('criterion')
    model = build(config).eval()
    inputs, samples = batch()
    with torch.no_grad():
        assert len(model.predict(inputs, samples)) == 2
    with pytest.raises(ValueError, match='built without a criterion'):
        model.loss(inputs, samples)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(neck=dict(num_outs=3)), "leave the encoder's num_levels out"),
        (
            dict(decoder=dict(layer=dict(cross_attn=dict(num_levels=3)))),
            'leave num_levels of every MSDeformAttn out',
        ),
        (dict(decoder=dict(num_layers=0)), None),
    ],
)
def test_parts_that_do_not_fit_say_which_settings_disagree(changes, message):
    with pytest.raises(ValueError, match=message or 'num_layers must be at least 1, got 0'):
        build(tiny_config(**changes)).loss(*batch())


def test_an_unknown_key_in_a_config_is_an_error():
    with pytest.raises(TypeError, match='as_two_stage'):
        MODELS.build(tiny_config(as_two_stage=True))


def test_an_encoder_without_layers_hands_the_tokens_on():
    model = build(tiny_config(encoder=dict(num_layers=0)))
    inputs, samples = batch()
    levels = FeatureLevels.from_images(
        [(8, 12), (4, 6), (2, 3), (1, 2)], (64, 96), [(64, 96)], inputs.device
    )
    tokens = torch.randn(1, 128, 32)
    assert torch.equal(model.encoder(tokens, torch.zeros_like(tokens), levels), tokens)


def test_every_level_has_its_own_embedding():
    encoder = build(tiny_config()).encoder
    seen = []
    encoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2)]
    levels = FeatureLevels.from_images(sizes, (64, 96), [(64, 96)], torch.device('cpu'))
    encoder(torch.randn(1, 128, 32), torch.zeros(1, 128, 32), levels)
    parts = seen[0][0].split(levels.tokens_per_level)
    for part, embedding in zip(parts, encoder.level_embed):
        assert torch.equal(part, embedding.expand_as(part))


@pytest.mark.parametrize('variant', VARIANTS)
def test_each_box_branch_is_evaluated_once_per_layer_and_forward(variant):
    model = build(tiny_config(variant))
    calls = []
    for name, branch in enumerate(model.bbox_head.reg_branches):
        # The last layer is called by itself, so that it can run outside autocast.
        for part in (branch[0], branch[2], branch[4]):
            part.register_forward_hook(lambda *_, name=name: calls.append(name))
    model.loss(*batch())
    assert sorted(calls) == [0] * 6 if variant == 'base' else [0] * 3 + [1] * 3


def test_refinement_feeds_the_detached_box_of_a_layer_to_the_next():
    for refine in (True, False):
        model = build(tiny_config('refine', decoder=dict(refine=refine)))
        references, boxes = [], []
        regress = model.bbox_head.regress

        def spy(layer, hidden, reference, regress=regress, references=references, boxes=boxes):
            references.append(reference)
            boxes.append(regress(layer, hidden, reference))
            return boxes[-1]

        model.bbox_head.regress = spy
        model.loss(*batch())
        assert boxes[0].requires_grad
        assert references[0].shape[-1] == 2
        if refine:
            assert torch.equal(references[1], boxes[0])
            assert not references[1].requires_grad
        else:
            assert references[1] is references[0]


def test_encoder_query_head_and_decoder_bring_nothing_to_the_host(model):
    inputs, samples = batch()
    maps = model.extract_feat(inputs)
    levels = FeatureLevels.from_images(
        [m.shape[-2:] for m in maps], (80, 96), [(64, 96), (80, 72)], inputs.device
    )
    with count_transfers() as transfers:
        pos = [model.positional_encoding(mask, None) for mask in levels.level_masks()]
        memory = model.encoder(flatten_levels(maps), flatten_levels(pos), levels)
        queries = model.query_head(memory, levels)
        hidden, _ = model.decoder(*queries[:3], memory, levels, model.bbox_head.regress)
        model.bbox_head.classify(hidden)
    assert transfers == []


def test_a_training_step_brings_only_the_costs_to_the_host(model):
    inputs, samples = batch()
    with count_transfers() as transfers:
        sum(model.loss(inputs, samples).values()).backward()
    assert transfers == ['cpu']


@pytest.mark.parametrize('variant', VARIANTS)
def test_matrices_of_the_transformer_start_xavier_uniform(variant):
    model = MODELS.build(tiny_config(variant))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    initialise(model)
    for part in (model.encoder, model.decoder):
        for name, parameter in part.layers.named_parameters():
            if 'sampling_offsets' in name or 'attention_weights.' in name:
                assert not parameter.any() or name.endswith('offsets.bias')
            elif parameter.dim() > 1:
                bound = math.sqrt(6 / sum(parameter.shape))
                assert 0.9 * bound < parameter.abs().max() <= bound, name
    assert model.encoder.level_embed.std().item() == pytest.approx(1, abs=0.2)
    offsets = [m.sampling_offsets for m in model.modules() if isinstance(m, MSDeformAttn)]
    assert len(offsets) == 3
    assert all(offset.bias[:2].tolist() == [1, 0] for offset in offsets)
    for conv in model.neck.modules():
        if isinstance(conv, torch.nn.Conv2d):
            bound = math.sqrt(6 / (conv.weight[0].numel() + conv.weight[:, 0].numel()))
            assert 0.9 * bound < conv.weight.abs().max() <= bound
            assert not conv.bias.any()


def test_dropout_acts_in_training_alone():
    model = build(tiny_config(dropout=0.5))
    inputs, samples = batch()
    with torch.no_grad():
        training = [model.train()(inputs, samples)[0] for _ in range(2)]
        testing = [model.eval()(inputs, samples)[0] for _ in range(2)]
    assert not torch.allclose(*training)
    assert torch.equal(*testing)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_a_model_cast_to_another_dtype_gives_near_results_in_float32_or_better(variant, dtype):
    model = build(tiny_config(variant)).eval()
    inputs, samples = batch()
    exact = model.loss(inputs, samples)
    exact = {name: loss.detach() for name, loss in exact.items()}
    wide = copy.deepcopy(model)
    model.to(dtype)
    losses = model.loss(inputs.to(dtype), samples)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.dtype in (torch.float32, torch.float64)
        if dtype == torch.float64:
            assert loss.item() == pytest.approx(exact[name].item(), rel=1e-4), name
    if dtype == torch.bfloat16:
        losses = {name: loss.detach() for name, loss in losses.items()}
        assert_as_near_as_rounding_allows(
            losses, exact, lambda: wide.loss(inputs, samples), wide, dtype
        )
    with torch.no_grad():
        for result in model(inputs.to(dtype), samples):
            assert result.dtype in (torch.float32, torch.float64)


def test_ground_truth_may_come_as_box_objects_of_mmdet(model):
    inputs, samples = batch()
    with torch.no_grad():
        wanted = model.loss(inputs, samples)
        for sample in samples:
            sample.gt_instances.bboxes = HorizontalBoxes(sample.gt_instances.bboxes)
        losses = model.loss(inputs, samples)
    assert losses == wanted


@pytest.mark.slow
# Else dynamic=True makes symbols of dropout rates and of norms' eps, and compiles twice.
@torch._dynamo.config.patch(specialize_float=True)
def test_a_compiled_model_has_no_graph_break_and_is_not_compiled_per_size():
    torch.compiler.reset()
    variant = 'two-stage'  # it holds what the others have
    plain = build(tiny_config(variant))
    # aot_eager: what is traced and differentiated is the same, without a compiler behind it.
    compiled = build(tiny_config(variant, compile=dict(dynamic=True, backend='aot_eager')))
    counters = torch._dynamo.utils.counters
    counters.clear()
    graphs = []
    for shapes in (((64, 96), (80, 72)), ((160, 192), (100, 208)), ((96, 128), (128, 100))):
        inputs, samples = batch(shapes)
        losses = [model.train().loss(inputs, samples) for model in (plain, compiled)]
        for loss in losses:
            sum(loss.values()).backward()
        for name, value in losses[0].items():
            torch.testing.assert_close(losses[1][name], value, rtol=1e-4, atol=1e-5)
        graphs.append(counters['stats']['unique_graphs'])
    assert not counters['graph_break']
    assert graphs == [2, 2, 2]  # encoder and decoder
    gradients = dict(plain.named_parameters())
    for name, parameter in compiled.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-4, msg=name
            )
