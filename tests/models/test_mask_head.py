"""The mask head: numbers of the official network, losses, gradients, masks in pixels."""

import itertools
import math

import cv2
import numpy as np
import pytest
import torch
from builders import build, initialise
from mask_cases import make_inputs, mask_head_config, masked_batch, masks_config
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from rounding import assert_as_near_as_rounding_allows
from transfers import count_transfers

from ddetr_plugin.checkpoints import export
from ddetr_plugin.evaluation import require_finite
from ddetr_plugin.models.losses.assigner import NotFiniteError
from ddetr_plugin.models.losses.prediction_sets import Matches
from ddetr_plugin.models.losses.targets import Targets
from ddetr_plugin.registry import MODELS

HEAD_LOSSES = ('loss_mask', 'loss_dice')


def attention_by_definition(head, query, tokens, padding):
    """(M, H * W) float64 of one query over the tokens (H * W, C) of one picture."""
    query = query.double() @ head.query_proj.weight.double().T + head.query_proj.bias.double()
    keys = tokens.double() @ head.key_proj.weight.double().T + head.key_proj.bias.double()
    scores = torch.stack(
        [q @ k.T / math.sqrt(len(q)) for q, k in zip(query.chunk(4), keys.chunk(4, dim=1))]
    )
    scores[:, padding] = -math.inf
    return scores.exp() / scores.exp().sum()


@pytest.mark.parametrize('level', [2, 1])
def test_logits_equal_the_definition_in_float64_for_every_query_of_padded_pictures(level):
    in_channels = (24, 40, 56)[: level + 1]
    inputs = make_inputs(in_channels=in_channels)
    head = build(mask_head_config(in_channels=in_channels, level=level))
    picture = torch.arange(2).repeat_interleave(7)
    logits = head(head.prepare(inputs), inputs.hidden.flatten(0, 1), picture)
    assert logits.shape == (14, 32, 48)
    tokens = inputs.memory.split(inputs.levels.tokens_per_level, dim=1)[level]
    padding = inputs.levels.level_masks()[level].flatten(1)
    assert padding.any()
    size = inputs.levels.sizes[level]
    exact = head.double()
    for n, (b, q) in enumerate(itertools.product(range(2), range(7))):
        attention = attention_by_definition(exact, inputs.hidden[b, q], tokens[b], padding[b])
        assert attention.sum().item() == pytest.approx(1)
        x = torch.cat((inputs.neck_maps[level][b].double(), attention.view(4, *size)))[None]
        for i, (conv, norm) in enumerate(zip(exact.convs, exact.norms)):
            if i >= 2:
                finer = exact.adapters[i - 2](inputs.backbone_maps[level + 2 - i][b, None].double())
                x = finer + x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = norm(conv(x)).relu()
        wanted = exact.predictor(x)[0, 0].float()
        torch.testing.assert_close(logits[n], wanted, rtol=1e-4, atol=1e-5)


def test_logits_equal_those_of_detr_in_transformers():
    modeling = pytest.importorskip(
        'transformers.models.detr.modeling_detr', reason='transformers is not installed'
    )
    channels, in_channels = 64, (24, 40, 56)
    inputs = make_inputs(in_channels=in_channels, channels=channels)
    head = build(mask_head_config(embed_dims=channels, num_heads=8, in_channels=in_channels))
    attention = modeling.DetrMHAttentionMap(channels, 8)
    pyramid = modeling.DetrMaskHeadSmallConv(channels + 8, list(in_channels[::-1]), channels)
    first, *stages, last = (
        [*head.convs[0].parameters(), *head.norms[0].parameters()],
        [*head.convs[1].parameters(), *head.norms[1].parameters()],
        *(
            [*adapter.parameters(), *conv.parameters(), *norm.parameters()]
            for adapter, conv, norm in zip(head.adapters, head.convs[2:], head.norms[2:])
        ),
        [*head.predictor.parameters()],
    )
    with torch.no_grad():
        for theirs, ours in (
            (attention, [*head.query_proj.parameters(), *head.key_proj.parameters()]),
            (pyramid, [p for group in (first, *stages, last) for p in group]),
        ):
            for theirs_one, ours_one in zip(theirs.parameters(), ours, strict=True):
                theirs_one.copy_(ours_one)
        tokens = inputs.memory.split(inputs.levels.tokens_per_level, dim=1)[2]
        memory = tokens.transpose(1, 2).unflatten(2, inputs.levels.sizes[2])
        padding = inputs.levels.level_masks()[2][:, None, None]
        added = torch.zeros_like(padding, dtype=torch.float32).masked_fill(padding, -1e30)
        maps = attention(inputs.hidden, memory, added)
        wanted = pyramid(inputs.neck_maps[2], maps, list(inputs.backbone_maps[::-1]))[:, 0]
        picture = torch.arange(2).repeat_interleave(7)
        logits = head(head.prepare(inputs), inputs.hidden.flatten(0, 1), picture)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def losses_by_definition(logits, masks, count):
    """Focal and dice loss in float64, mask by mask; cv2 enlarges the logits."""
    focal = dice = 0.0
    for one, mask in zip(logits.detach().numpy().astype(np.float64), masks):
        one = cv2.resize(one, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
        p = 1 / (1 + np.exp(-one))
        positive = 0.25 * (1 - p) ** 2 * -np.log(p)
        negative = 0.75 * p**2 * -np.log(1 - p)
        focal += np.where(mask, positive, negative).mean()
        dice += 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
    return focal / count, dice / count


@pytest.mark.parametrize('kind', ['bitmaps', 'tensors', 'polygons'])
@pytest.mark.parametrize('gts', [(3, 2), (3, 0), (0, 1)])
def test_losses_equal_the_definition_in_float64(kind, gts, monkeypatch):
    model = build(masks_config())
    inputs, samples = masked_batch(gts=gts)
    masks = []
    for sample in samples:
        height, width = sample.img_shape
        instances = sample.gt_instances
        if kind == 'polygons':
            corners = [[0, 0, 20, 0, 20, 30 + i, 0, 30 + i] for i in range(len(instances))]
            polygons = [[np.array(c, dtype=np.float64)] for c in corners]
            instances.masks = PolygonMasks(polygons, height, width)
            arrays = np.zeros((len(polygons), height, width), dtype=np.uint8)
            for i in range(len(polygons)):
                arrays[i, : 30 + i, :20] = 1
        else:
            arrays = instances.masks.masks
        if kind == 'tensors':
            instances.masks = torch.from_numpy(arrays).bool()
        masks.append(np.pad(arrays, ((0, 0), (0, 80 - height), (0, 96 - width))))
    seen = []
    calls = model.criterion.losses_and_matches
    monkeypatch.setattr(
        model.criterion, 'losses_and_matches', lambda *a: seen.append(calls(*a)) or seen[-1]
    )
    losses = model.loss(inputs, samples)
    matches = seen[0][1]
    assert matches.count == sum(gts) == len(matches.picture)
    head_inputs = model.forward_batch(inputs, samples).head_inputs
    hidden = head_inputs.hidden[matches.picture, matches.query]
    logits = model.mask_head(model.mask_head.prepare(head_inputs), hidden, matches.picture)
    wanted = [masks[b][g] for b, g in zip(matches.picture, matches.gt)]
    focal, dice = losses_by_definition(logits, wanted, sum(gts))
    assert losses['loss_mask'].item() == pytest.approx(focal, rel=1e-5)
    assert losses['loss_dice'].item() == pytest.approx(dice, rel=1e-5)


def test_matches_are_those_of_the_last_layer():
    model = build(masks_config('refine'))
    inputs, samples = masked_batch()
    logits, boxes, *_ = model.forward_batch(inputs, samples)
    targets = Targets.from_samples(samples)
    _, matches = model.criterion.losses_and_matches(logits, boxes, targets)
    assigner = model.criterion.assigner
    start = 0
    for b, count in enumerate(targets.counts):
        cost = assigner.cost(
            logits[-1, b], boxes[-1, b], targets.labels[b, :count], targets.boxes[b, :count]
        )
        query, gt = assigner.match(cost.numpy())
        rows = slice(start, start + count)
        assert matches.picture[rows].tolist() == [b] * count
        assert matches.query[rows].tolist() == query.tolist()
        assert matches.gt[rows].tolist() == gt.tolist()
        start += count
    assert start == len(matches.picture)


def test_chunks_change_neither_losses_nor_gradients():
    results = []
    for chunk_size in (16, 2):
        model = build(masks_config(mask_head=mask_head_config(chunk_size=chunk_size)))
        losses = model.loss(*masked_batch())
        sum(losses[name] for name in HEAD_LOSSES).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((losses['loss_mask'], losses['loss_dice'], *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_without_ground_truth_losses_are_zero_and_every_gradient_exists():
    model = build(masks_config()).train()
    losses = model.loss(*masked_batch(gts=(0, 0)))
    assert losses['loss_mask'] == losses['loss_dice'] == 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
    assert not any(p.grad.any() for p in model.mask_head.parameters())


def test_masks_train_the_detector_unless_it_is_frozen():
    model = build(masks_config()).train()
    losses = model.loss(*masked_batch())
    sum(losses[name] for name in HEAD_LOSSES).backward()
    for part in (model.backbone, model.neck, model.encoder, model.decoder, model.mask_head):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())

    config = masks_config('two-stage', dropout=0.5, freeze_detector=True)
    model = build(config).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inputs, samples = masked_batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = model.loss(inputs, samples)
    sum(first.values()).backward()
    for name, parameter in model.named_parameters():
        ours = name.startswith('mask_head.')
        assert parameter.requires_grad == ours
        assert (parameter.grad is not None) == ours, name
    optimizer.step()
    changed = {k.split('.')[0] for k, v in model.state_dict().items() if not v.equal(before[k])}
    assert changed == {'mask_head'}
    assert model.training
    assert model.mask_head.training
    assert not model.decoder.training
    second = model.loss(inputs, samples)
    for name in set(first) - set(HEAD_LOSSES):
        assert first[name] == second[name]  # without dropout


def test_freezing_without_a_mask_head_is_refused():
    with pytest.raises(ValueError, match='trains the task heads alone.*give `mask_head`'):
        MODELS.build(masks_config(freeze_detector=True) | dict(mask_head=None))


def test_a_mask_of_nan_is_told_by_its_score_and_refused():
    """The mask itself is empty then, and an empty mask is a prediction like others."""
    model = build(masks_config()).eval()
    inputs, samples = masked_batch()
    with torch.no_grad():
        for sample in model.predict(inputs, samples):
            assert torch.equal(sample.pred_instances.mask_scores, sample.pred_instances.scores)
        query = sample.pred_instances.queries[3]
        forward = model.mask_head.forward

        def break_one(features, hidden, picture):
            wanted = model.forward_batch(inputs, samples).head_inputs.hidden[-1, query]
            logits = forward(features, hidden, picture)
            broken = (hidden == wanted).all(1) & (picture == len(samples) - 1)
            return logits.masked_fill(broken[:, None, None], math.nan)

        model.mask_head.forward = break_one
        first, last = model.predict(inputs, samples)
    require_finite(first.pred_instances, 'first.png')
    with pytest.raises(NotFiniteError, match=f'mask score of query {query} on image last.png'):
        require_finite(last.pred_instances, 'last.png')


@pytest.mark.parametrize('rescale', [True, False])
def test_masks_are_those_of_the_detected_queries_in_pixels_of_the_picture(rescale):
    model = build(masks_config('two-stage', bbox_head=dict(max_per_img=20))).eval()
    inputs, samples = masked_batch()
    rows = []
    model.mask_head.query_proj.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with torch.no_grad():
        outputs = model.forward_batch(inputs, samples)
        results = model.predict(inputs, samples, rescale=rescale)
    assert max(rows) <= model.mask_head.chunk_size
    assert sum(rows) == sum(len(set(s.pred_instances.queries.tolist())) for s in results)
    features = model.mask_head.prepare(outputs.head_inputs)
    for b, sample in enumerate(results):
        found = sample.pred_instances
        height, width = sample.img_shape
        size = sample.ori_shape if rescale else sample.img_shape
        assert found.masks.dtype == torch.bool
        assert found.masks.shape == (20, *size)
        scores = outputs.logits[-1, b].sigmoid()[found.queries, found.labels]
        torch.testing.assert_close(scores, found.scores)
        with torch.no_grad():
            hidden = outputs.head_inputs.hidden[b, found.queries]
            logits = model.mask_head(features, hidden, torch.full((20,), b)).numpy()
        for one, mask in zip(logits, found.masks.numpy()):
            one = cv2.resize(one, (96, 80), interpolation=cv2.INTER_LINEAR)[:height, :width]
            one = cv2.resize(one, size[::-1], interpolation=cv2.INTER_LINEAR)
            assert ((one > 0) == mask)[np.abs(one) > 1e-4].all()


def test_a_training_step_with_masks_brings_only_the_costs_to_the_host():
    model = build(masks_config())
    inputs, samples = masked_batch()
    for sample in samples:
        # Bitmaps are on the host.
        sample.gt_instances.masks = torch.from_numpy(sample.gt_instances.masks.masks)
    with count_transfers() as transfers:
        sum(model.loss(inputs, samples).values()).backward()
    assert transfers == ['cpu']


def test_losses_are_float32_and_near_in_bfloat16():
    model = build(masks_config())
    inputs, samples = masked_batch()
    plain = model.loss(inputs, samples)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(inputs, samples)
        sum(losses.values()).backward()
    head = {name: losses[name].detach() for name in HEAD_LOSSES}
    assert {loss.dtype for loss in head.values()} == {torch.float32}
    assert_as_near_as_rounding_allows(
        head,
        {name: plain[name].detach() for name in HEAD_LOSSES},
        lambda: model.loss(inputs, samples),
        model,
        torch.bfloat16,
    )
    assert all(p.grad.isfinite().all() for p in model.mask_head.parameters())


def test_the_head_starts_as_the_official_one():
    head = MODELS.build(mask_head_config())
    initialise(head)
    for conv in (*head.convs, *head.adapters, head.predictor):
        bound = math.sqrt(3 / conv.weight[0].numel())
        assert 0.8 * bound < conv.weight.abs().max() <= bound
        assert not conv.bias.any()
    for linear in (head.query_proj, head.key_proj):
        assert 0.9 * math.sqrt(6 / 64) < linear.weight.abs().max() <= math.sqrt(6 / 64)
        assert not linear.bias.any()


@pytest.mark.parametrize('dialect', ['ddetr_plugin', 'official'])
def test_a_detector_without_mask_head_loads_into_one_with_it_and_a_message_says_so(
    dialect, monkeypatch
):
    config = masks_config()
    model = build(config)
    config.pop('mask_head')
    config.backbone.out_indices = (1, 2, 3)
    detector = build(config, seed=1)
    state = detector.state_dict()
    if dialect == 'official':
        state = export(state, 'official')
    said = []
    monkeypatch.setattr(
        'ddetr_plugin.models.detector.print_log', lambda message, **_: said.append(message)
    )
    own = {k: v.clone() for k, v in model.mask_head.state_dict().items()}
    result = model.load_state_dict(state, strict=False)
    assert result.unexpected_keys == []
    assert {k for k in result.missing_keys if 'num_batches' not in k} == {
        f'mask_head.{k}' for k in own
    }
    assert len(said) == 1
    assert 'The checkpoint has no mask head' in said[0]
    for name, tensor in detector.state_dict().items():
        if 'num_batches' not in name:
            assert torch.equal(model.state_dict()[name], tensor), name
    assert all(torch.equal(v, own[k]) for k, v in model.mask_head.state_dict().items())
    model.load_state_dict(model.state_dict())
    assert len(said) == 1
    with pytest.raises(RuntimeError, match=r'mask_head\.query_proj\.weight'):
        build(masks_config()).load_state_dict(dict(state))


def test_missing_and_oversized_masks_are_refused():
    model = build(masks_config())
    inputs, samples = masked_batch()
    samples[1].gt_instances.masks = BitmapMasks(np.zeros((2, 99, 72), dtype=np.uint8), 99, 72)
    with pytest.raises(ValueError, match='masks of picture 1 are 99 x 72, larger than the batch'):
        model.loss(inputs, samples)
    del samples[1].gt_instances.masks
    with pytest.raises(ValueError, match=r'picture 1 have no masks.*with_mask=True'):
        model.loss(inputs, samples)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(embed_dims=30), 'embed_dims must be a multiple of num_heads=4 and of 16'),
        (dict(level=4), 'level must be at least 0 and at most the number of in_channels'),
        (dict(chunk_size=0), 'chunk_size at least 1'),
    ],
)
def test_a_head_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(mask_head_config(**changes))


def test_maps_that_do_not_fit_say_which_settings_disagree():
    head = build(mask_head_config())
    inputs = make_inputs()
    with pytest.raises(ValueError, match="mask_head.in_channels and the backbone's out_indices"):
        head.prepare(inputs._replace(backbone_maps=inputs.backbone_maps[:2]))


def test_rows_of_one_picture_do_not_depend_on_the_others():
    inputs = make_inputs()
    head = build(mask_head_config())
    features = head.prepare(inputs)
    matches = Matches(torch.tensor([1, 0, 1]), torch.tensor([3, 2, 6]), torch.zeros(3), 3)
    hidden = inputs.hidden[matches.picture, matches.query]
    together = head(features, hidden, matches.picture)
    for n in range(3):
        alone = head(features, hidden[n, None], matches.picture[n, None])
        torch.testing.assert_close(together[n], alone[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-3)
