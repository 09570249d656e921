"""VisionTransformer against scalar formulas, and its behaviour at every size of pictures."""

import math

import pytest
import torch
import torch.nn.functional as nnf
from builders import initialise
from rounding import assert_as_near_as_rounding_allows

from ddetr_plugin.registry import MODELS

TINY = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=40)
TINY.update(patch_size=8, image_size=32)


def build(seed=0, **changes):
    """Small, with noise on every parameter, so that none is zero or one; evaluating."""
    torch.manual_seed(seed)
    model = MODELS.build(dict(type='ddetr_plugin.VisionTransformer') | TINY | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def by_hand(model, picture):
    """Eq. 1 to 4 and 5 to 8 of arXiv:2010.11929 for one picture (3, H, W) of the learned size."""
    state, heads, size = model.state_dict(), model.blocks[0].attn.num_heads, model.patch_size
    patches = [
        picture[:, y : y + size, x : x + size].flatten()
        for y in range(0, picture.shape[1], size)
        for x in range(0, picture.shape[2], size)
    ]
    kernel = state['patch_embed.proj.weight'].flatten(1)
    tokens = torch.stack([kernel @ p + state['patch_embed.proj.bias'] for p in patches])
    tokens = torch.cat((state['cls_token'][0], tokens)) + state['pos_embed'][0]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / deviation * state[f'{name}.weight'] + state[f'{name}.bias']

    def linear(x, name):
        return x @ state[f'{name}.weight'].T + state[f'{name}.bias']

    for block in range(len(model.blocks)):
        place = f'blocks.{block}'
        q, k, v = linear(norm(tokens, f'{place}.norm1'), f'{place}.attn.qkv').chunk(3, dim=-1)
        width = q.shape[-1] // heads
        attended = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            weights = (q[:, part] @ k[:, part].T / math.sqrt(width)).softmax(-1)
            attended.append(weights @ v[:, part])
        tokens = tokens + linear(torch.cat(attended, -1), f'{place}.attn.proj')
        hidden = linear(norm(tokens, f'{place}.norm2'), f'{place}.mlp.fc1')
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens = tokens + linear(hidden, f'{place}.mlp.fc2')
    return norm(tokens, 'norm')[1:]  # without the class token


def test_the_map_is_that_of_the_papers_equations_written_out():
    model = build().double()
    pictures = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    (features,) = model(pictures)
    assert features.shape == (2, 24, 4, 4)
    for picture, found in zip(pictures, features):
        wanted = by_hand(model, picture)
        # float64; the difference is the order of sums.
        torch.testing.assert_close(found.flatten(1).T, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('size', [(1, 1), (8, 24), (9, 23), (40, 33), (31, 32)])
def test_a_map_has_a_cell_for_every_begun_patch_and_equals_that_of_the_padded_picture(size):
    model = build()
    picture = torch.randn(1, 3, *size)
    rows, cols = (math.ceil(side / 8) for side in size)
    (features,) = model(picture)
    assert features.shape == (1, 24, rows, cols)
    padded = torch.zeros(1, 3, rows * 8, cols * 8)
    padded[..., : size[0], : size[1]] = picture
    assert torch.equal(features, model(padded)[0])


def test_positions_are_resampled_bicubically_and_stay_as_learned_at_their_own_size():
    model = build().double()
    learned = model.pos_embed[:, 1:]
    assert torch.equal(model._positions(4, 4), learned)
    grid = learned.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    for size in ((4, 7), (7, 4), (1, 9), (3, 2), (12, 5)):
        wanted = nnf.interpolate(grid, size=size, mode='bicubic', align_corners=False)
        found = model._positions(*size)
        # The weights of the resampling are float32.
        torch.testing.assert_close(found, wanted.flatten(2).mT, rtol=1e-5, atol=1e-6)


def test_gradients_are_the_same_in_every_run_and_reach_every_parameter():
    model = build().train()
    pictures = torch.randn(2, 3, 24, 41)
    runs = []
    for _ in range(2):
        model.zero_grad()
        model(pictures)[0].square().sum().backward()
        runs.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(torch.equal(grad, runs[1][name]) for name, grad in runs[0].items())
    assert all(grad.abs().max() > 0 for grad in runs[0].values())


@pytest.mark.parametrize('drop_path', [0.0, 0.5])
def test_checkpointing_changes_no_gradient(drop_path):
    pictures = torch.randn(2, 3, 24, 32)
    grads = []
    for with_cp in (False, True):
        model = build(with_cp=with_cp, drop_path=drop_path).train()
        torch.manual_seed(3)  # checkpointing draws what was dropped again
        model(pictures)[0].square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*grads))


def test_checkpointing_keeps_less_for_the_backward_pass():
    kept = []
    for with_cp in (False, True):
        model = build(with_cp=with_cp).train()
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(torch.randn(1, 3, 64, 64))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


def test_stochastic_depth_skips_parts_of_the_last_block_in_training_only():
    model = build(num_layers=3, drop_path=0.9)
    assert [block.drop_path.drop_prob for block in model.blocks] == pytest.approx([0.0, 0.45, 0.9])
    last = model.blocks[-1].train()
    tokens = torch.randn(400, 2, 24)
    changed = last(tokens) != tokens
    # Per picture: both parts are skipped with probability 0.81; four standard deviations.
    assert torch.equal(changed.any(dim=(1, 2)), changed.flatten(1).any(1))
    assert changed.any(dim=(1, 2)).float().mean() == pytest.approx(0.19, abs=0.08)
    assert (last.eval()(tokens) != tokens).any(dim=(1, 2)).all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_keeps_the_residual_stream_in_float32(dtype):
    model = build()
    pictures = torch.randn(2, 3, 24, 40)
    wanted = model(pictures)[0]
    entered = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, args: entered.append(args[0].dtype))
    with torch.autocast('cpu', dtype):
        found = model(pictures)[0]
        found.float().square().mean().backward()
    assert entered == [torch.float32] * 2
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert_as_near_as_rounding_allows(
        dict(map=found.detach()),
        dict(map=wanted.detach()),
        lambda: dict(map=model(pictures)[0]),
        model,
        dtype,
    )


@pytest.mark.parametrize('with_cp', [False, True])
def test_it_compiles_without_a_graph_break_and_once_for_other_sizes(with_cp):
    model = build(num_layers=1, with_cp=with_cp).train()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend='eager')
    for size in ((24, 40), (56, 72)):
        pictures = torch.randn(1, 3, *size)
        torch.testing.assert_close(compiled(pictures)[0], model(pictures)[0], rtol=1e-4, atol=1e-5)
    with torch.compiler.set_stance('fail_on_recompile'):
        compiled(torch.randn(1, 3, 40, 88))


def test_it_starts_with_small_matrices_and_zero_biases():
    model = MODELS.build(dict(type='ddetr_plugin.VisionTransformer', num_layers=1))
    initialise(model)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.0176, rel=0.15), (
                name
            )  # of a cut normal
        else:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith('weight')))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_heads=5), 'embed_dims must be a multiple of num_heads, got 24 and 5'),
        (dict(image_size=30), 'image_size must be a multiple of patch_size, got 30 and 8'),
        (dict(num_layers=0), 'num_layers must be positive, got 0'),
        (dict(patch_size=-8), 'patch_size must be positive, got -8'),
        (dict(drop_path=1.0), r'drop_path must be in \[0, 1\), got 1.0'),
    ],
)
def test_a_bad_argument_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 1, 32, 32), (1, 3, 0, 32)])
def test_what_is_no_batch_of_pictures_is_refused(shape):
    with pytest.raises(ValueError, match=r'pictures must be \(B, 3, H, W\)'):
        build()(torch.zeros(shape))
