"""Dropout by counters: what it computes, that it is random, and that its gradient is its own."""

import math

import pytest
import torch
from forked import run_python

from ddetr_plugin.ops import dropout, dropout_add, native_load_error, relu_dropout

native = pytest.mark.skipif(native_load_error() is not None, reason='the operator is not built')
stats = pytest.importorskip('scipy.stats', reason='scipy is not installed')
DTYPES = [torch.float32, torch.bfloat16]
# Below, at and above a block, and many of them for several threads.
# A product with 1 / (1 - p) may be rounded to the other neighbour of the quotient.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7}
SIZES = [0, 1, 63, 64, 65, 1000, 300_001]


def draw(count, p=0.3, seed=0, function=dropout):
    torch.manual_seed(seed)
    return function(torch.ones(count), p)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size', SIZES)
def test_elements_are_dropped_or_scaled(size, dtype):
    x = torch.randn(size).to(dtype)
    y = dropout(x, 0.25)
    assert y.dtype == dtype
    kept = y != 0
    expected = (x.float() / 0.75).to(dtype)
    torch.testing.assert_close(y[kept], expected[kept], rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size', SIZES)
def test_dropout_add_is_the_sum_with_the_mask_of_dropout(size, dtype):
    x, residual = torch.randn(2, size)
    x = x.to(dtype)
    torch.manual_seed(1)
    dropped = dropout(x, 0.4)
    torch.manual_seed(1)
    total = dropout_add(x, residual, 0.4)
    assert total.dtype == torch.float32
    # A product is rounded alone, by half a step, but not on its way into a sum.
    half_a_step = torch.finfo(dtype).eps / 2
    allowed = half_a_step * dropped.float().abs() + 1e-6 * (1 + total.abs())
    assert ((total - residual - dropped.float()).abs() <= allowed).all()


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('size', SIZES)
def test_relu_dropout_is_dropout_of_the_relu(size, dtype):
    x = torch.randn(size).to(dtype)
    torch.manual_seed(2)
    expected = dropout(x.relu(), 0.4)
    torch.manual_seed(2)
    assert torch.equal(relu_dropout(x, 0.4), expected)


@pytest.mark.parametrize('function', [dropout, relu_dropout])
@pytest.mark.parametrize('dtype', DTYPES)
def test_gradients_are_those_of_the_mask(function, dtype):
    x = torch.randn(1000).to(dtype).requires_grad_()
    y = function(x, 0.4)
    grad = torch.randn(1000).to(dtype)
    y.backward(grad)
    expected = (grad.float() * (y != 0) / 0.6).to(dtype)
    torch.testing.assert_close(x.grad, expected, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize('dtype', DTYPES)
def test_gradients_of_dropout_add(dtype):
    x = torch.randn(1000).to(dtype).requires_grad_()
    residual = torch.zeros(1000, requires_grad=True)
    y = dropout_add(x, residual, 0.4)
    grad = torch.randn(1000)
    y.backward(grad)
    assert torch.equal(residual.grad, grad)
    expected = (grad.to(dtype).float() * (y != 0) / 0.6).to(dtype)
    torch.testing.assert_close(x.grad, expected, rtol=TOLERANCE[dtype], atol=0)


@native
def test_words_are_those_of_philox():
    """Known answer of Philox4x32-10 (Random123's kat_vectors): counter and key zero."""
    known = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones, seed = torch.ones(64), torch.tensor([0])
    for element, word in zip((0, 16, 32, 48), known):
        # Dropped if and only if the word is below p * 2^32.
        for p, dropped in ((word / 2**32, False), ((word + 1) / 2**32, True)):
            y = torch.ops.ddetr_plugin.dropout(ones, seed, p)
            assert (y[element] == 0) == dropped


@pytest.mark.parametrize('p', [0.05, 0.1, 0.5, 0.9])
def test_frequencies_are_binomial(p):
    count = 2_000_000
    dropped = int((draw(count, p) == 0).sum())
    assert stats.binomtest(dropped, count, p).pvalue > 1e-4


def test_neighbours_and_calls_are_independent():
    first, second = draw(1_000_000, 0.5) == 0, draw(1_000_000, 0.5, seed=1) == 0
    for a, b in [(first, second), *((first[k:], first[:-k]) for k in (1, 2, 16, 64, 1024))]:
        agree = int((a == b).sum())
        assert stats.binomtest(agree, len(a), 0.5).pvalue > 1e-4


def test_a_seed_repeats_and_the_next_call_differs():
    torch.manual_seed(3)
    first, second = dropout(torch.ones(500), 0.5), dropout(torch.ones(500), 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(500), 0.5), first)
    assert not torch.equal(first, second)


@native
def test_threads_and_instruction_sets_draw_the_same_mask():
    code = """
import torch
from ddetr_plugin.ops import dropout
torch.set_num_threads({threads})
torch.manual_seed(0)
print((dropout(torch.ones(200_003), 0.3).view(torch.int32).long() * torch.arange(200_003)).sum())
"""
    done = [
        run_python(code.format(threads=threads), DDETR_CPU_CAPABILITY=capability)
        for threads, capability in ((1, ''), (3, ''), (2, 'avx2'), (2, 'default'))
    ]
    assert done[0].returncode == 0, done[0].stderr
    assert len({one.stdout for one in done}) == 1


def test_nothing_happens_outside_training_or_with_probability_zero():
    x, residual = torch.randn(2, 100)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert torch.equal(dropout_add(x, residual, 0.5, training=False), x + residual)
    assert torch.equal(relu_dropout(x, 0.5, training=False), x.relu())
    assert not dropout(x, 1.0).any()


def test_nan_and_infinity_pass_where_they_are_kept():
    x = torch.tensor([math.nan, math.inf, -math.inf]).repeat(100)
    kept = dropout(x, 0.5)
    assert kept.isnan().any()
    assert kept.isinf().any()
    assert relu_dropout(x, 0.5).isnan().any()


@pytest.mark.parametrize('p', [-0.1, 1.1, math.nan])
@pytest.mark.parametrize('function', [dropout, relu_dropout])
def test_probabilities_out_of_range_are_refused(function, p):
    with pytest.raises(ValueError, match='probability'):
        function(torch.ones(3), p)


def test_other_dtypes_and_shapes_take_the_way_of_torch():
    x = torch.randn(100, dtype=torch.float64, requires_grad=True)
    for y in (dropout(x, 0.5), dropout_add(x, torch.zeros(100).double(), 0.5)):
        assert set((y / x).detach().round(decimals=9).unique().tolist()) == {0.0, 2.0}
    broadcast = dropout_add(torch.ones(4, 3), torch.zeros(3), 0.5)
    assert set(broadcast.unique().tolist()) <= {0.0, 2.0}


@native
@pytest.mark.parametrize('strided', ['transposed', 'sliced'])
def test_layouts_do_not_matter(strided):
    x = torch.randn(40, 30).t() if strided == 'transposed' else torch.randn(30, 80)[:, ::2]
    torch.manual_seed(4)
    expected = dropout(x.contiguous(), 0.5)
    torch.manual_seed(4)
    assert torch.equal(dropout(x, 0.5), expected)


@native
@pytest.mark.parametrize('dtype', DTYPES)
def test_the_operators_pass_torchs_own_check(dtype):
    x = torch.randn(70, dtype=dtype, requires_grad=True)
    residual, seed = torch.randn(70, requires_grad=True), torch.tensor([5])
    # The gradient through the dispatcher is what the check compares with the traced one.
    utils = ('test_schema', 'test_faketensor', 'test_aot_dispatch_dynamic')
    ops = torch.ops.ddetr_plugin
    torch.library.opcheck(ops.dropout.default, (x, seed, 0.3), test_utils=utils)
    torch.library.opcheck(ops.dropout_add.default, (x, residual, seed, 0.3), test_utils=utils)
    torch.library.opcheck(ops.relu_dropout.default, (x, seed, 0.3), test_utils=utils)


@native
def test_a_compiled_module_draws_anew_in_every_call():
    compiled = torch.compile(lambda x: dropout(x, 0.5), backend='aot_eager', fullgraph=True)
    x = torch.ones(200)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 2.0}


def test_activation_checkpointing_draws_the_same_mask_again():
    x = torch.randn(500, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(lambda x: dropout(x, 0.5) * 3, x, use_reentrant=False)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y != 0).float() * 6)


@native
def test_malformed_calls_of_the_operators_are_refused():
    ops, x, seed = torch.ops.ddetr_plugin, torch.ones(4), torch.tensor([1])
    for call, word in (
        (lambda: ops.dropout(x, seed, 1.0), 'p must'),
        (lambda: ops.dropout(x, torch.tensor([1.0]), 0.5), 'seed'),
        (lambda: ops.dropout(x, torch.tensor([1, 2]), 0.5), 'seed'),
        (lambda: ops.dropout(x.double(), seed, 0.5), 'float32 or bfloat16'),
        (lambda: ops.dropout_add(x, torch.ones(5), seed, 0.5), 'residual'),
        (lambda: ops.dropout_add(x, x.bfloat16(), seed, 0.5), 'residual'),
        (lambda: ops.relu_dropout_backward(x, torch.ones(3), 0.5), 'grad_output'),
        (lambda: ops.relu_dropout_backward(x, x.bfloat16(), 0.5), 'grad_output'),
    ):
        with pytest.raises(RuntimeError, match=word):
            call()
