"""mmcv's MultiScaleDeformableAttention on our operator: the same numbers, and undone afterwards.

The first results are always mmcv's own on a CPU.
"""

import sys
import threading
import types
import warnings

import pytest
import torch
from forked import run_python

import ddetr_plugin  # noqa: F401  (first: mmcv-lite has no mmcv.ops by itself)

pytest.importorskip('mmcv')
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops import multi_scale_deform_attn as mmcv_module
from op_cases import SIZES, case, devices, levels_of, outputs_and_gradients

from ddetr_plugin.ops import _native, mmcv_replacement, ms_deform_attn_reference, replace_mmcv_op

NAMES = (mmcv_replacement.GPU_FUNCTION, mmcv_replacement.CPU_FUNCTION)
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def theirs():
    """What mmcv's module has under the two names."""
    return [vars(mmcv_module)[name] for name in NAMES]


@pytest.fixture(autouse=True)
def leaves_mmcv_as_it_was():
    before = theirs()
    yield
    assert theirs() == before


@pytest.fixture
def spy(monkeypatch):
    """The arguments of every call of our operator."""
    calls = []
    real = mmcv_replacement.ms_deform_attn

    def spied(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(mmcv_replacement, 'ms_deform_attn', spied)
    return calls


@pytest.fixture
def branch_for_gpus(monkeypatch):
    """mmcv's forward takes CPU tensors for those of an accelerator that it has kernels for."""
    monkeypatch.setattr(mmcv_module, 'IS_MLU_AVAILABLE', True)
    monkeypatch.setattr(torch.Tensor, 'is_mlu', True, raising=False)


def attention(kind=MultiScaleDeformableAttention, **options):
    """mmcv's module with noise on every parameter: its initial offsets ignore the query."""
    module = kind(
        embed_dims=24, num_heads=3, num_levels=len(SIZES), num_points=2, dropout=0.0, **options
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


def inputs_of(module, coordinates=2, device='cpu'):
    """Keyword arguments of a forward, the last three cells of the second picture padded."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in SIZES)
    query = torch.randn(2, 6, 24, generator=generator)
    value = torch.randn(2, tokens, 24, generator=generator)
    padding = torch.zeros(2, tokens, dtype=torch.bool)
    padding[1, -3:] = True
    if not module.batch_first:
        query, value = query.transpose(0, 1), value.transpose(0, 1)
    spatial_shapes, level_start_index = levels_of(SIZES)
    inputs = dict(
        query=query,
        value=value,
        key_padding_mask=padding,
        reference_points=torch.rand(2, 6, len(SIZES), coordinates, generator=generator),
        spatial_shapes=spatial_shapes,
        level_start_index=level_start_index,
    )
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def output_and_gradients(module, inputs):
    """The output, then the gradients of query, value and every parameter."""
    leaves = {name: inputs[name].detach().clone().requires_grad_() for name in ('query', 'value')}
    output = module(**{**inputs, **leaves})
    generator = torch.Generator().manual_seed(1)
    grad_output = torch.randn(output.shape, generator=generator).to(output)
    wanted = [*leaves.values(), *module.parameters()]
    return [output.detach(), *torch.autograd.grad(output, wanted, grad_output)]


def assert_all_close(ours, expected, relative=1e-5):
    """float32 sums of a few hundred products, in another order."""
    for mine, other in zip(ours, expected, strict=True):
        largest = other.abs().max().item()
        torch.testing.assert_close(mine.cpu(), other, rtol=0, atol=relative * max(largest, 1))


@pytest.mark.parametrize('device', devices())
@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('coordinates', [2, 4])
def test_output_and_gradients_are_those_of_mmcv(coordinates, batch_first, device, spy):
    module = attention(batch_first=batch_first)
    expected = output_and_gradients(module, inputs_of(module, coordinates))
    assert not spy
    module.to(device)
    with replace_mmcv_op() as replaced:
        ours = output_and_gradients(module, inputs_of(module, coordinates, device))
    assert replaced
    assert len(spy) == 1
    assert_all_close(ours, expected)


def test_the_branch_for_gpus_computes_the_same(spy, branch_for_gpus):
    module = attention()
    inputs = inputs_of(module)
    with replace_mmcv_op():
        ours = output_and_gradients(module, inputs)
    assert len(spy) == 1
    assert spy[0][2] is inputs['level_start_index']
    mmcv_module.IS_MLU_AVAILABLE = False
    assert_all_close(ours, output_and_gradients(module, inputs))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_under_autocast_values_are_narrow_and_coordinates_float32(dtype, spy):
    module = attention()
    inputs = inputs_of(module)
    expected = module(**inputs)
    with replace_mmcv_op(), torch.autocast('cpu', dtype):
        output = module(**inputs)
    ((value, _, _, locations, weights),) = spy
    assert (value.dtype, locations.dtype, weights.dtype) == (dtype, torch.float32, torch.float32)
    # Four roundings to 8 bits, of numbers of size one, before they are added up.
    assert 0 < (output - expected).abs().max() < 0.1


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('weights_dtype', FLOATS)
@pytest.mark.parametrize('locations_dtype', FLOATS)
@pytest.mark.parametrize('dtype', FLOATS)
def test_any_mixture_of_dtypes_is_computed_at_least_in_float32(
    dtype, locations_dtype, weights_dtype, name
):
    value, shapes, starts, locations, weights = case()
    value, locations, weights = (
        value.to(dtype),
        locations.to(locations_dtype),
        weights.to(weights_dtype),
    )
    exact = [value.double(), shapes, starts, locations.double(), weights.double()]
    expected = outputs_and_gradients(ms_deform_attn_reference, exact)
    with replace_mmcv_op():
        ours = getattr(mmcv_module, name)

        def function(value, shapes, starts, locations, weights):
            if name == mmcv_replacement.CPU_FUNCTION:
                return ours(value, shapes, locations, weights)
            return ours.apply(value, shapes, starts, locations, weights, 64)

        results = outputs_and_gradients(function, [value, shapes, starts, locations, weights])
    assert [result.dtype for result in results] == [
        dtype,
        dtype,
        locations_dtype,
        weights_dtype,
    ]
    # The output is rounded once to `value`'s dtype, each gradient once to that of its input.
    for result, exactly, kind in zip(results, expected, [dtype] + [r.dtype for r in results[1:]]):
        computed = torch.float32 if dtype != torch.float64 else torch.float64
        resolution = max(torch.finfo(kind).eps, torch.finfo(computed).eps * 50)
        largest = exactly.abs().max()
        # outputs_and_gradients rounds grad_output, too.
        resolution = max(resolution, torch.finfo(dtype).eps * 2)
        assert (result.double() - exactly).abs().max() <= resolution * largest


@pytest.mark.parametrize(
    'make_shapes',
    [
        lambda sizes: torch.tensor(sizes, dtype=torch.int32),
        lambda sizes: torch.tensor(sizes),
        lambda sizes: [tuple(size) for size in sizes],
    ],
    ids=['int32', 'int64', 'pairs'],
)
def test_level_sizes_may_have_any_form_that_mmcv_takes(make_shapes):
    value, _, _, locations, weights = case(dtype=torch.float32)
    shapes = make_shapes(SIZES)
    expected = mmcv_module.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    with replace_mmcv_op():
        output = mmcv_module.multi_scale_deformable_attn_pytorch(
            value,
            value_spatial_shapes=shapes,
            sampling_locations=locations,
            attention_weights=weights,
        )
    assert_all_close([output], [expected])


def test_it_is_undone_only_when_the_outermost_context_ends(spy):
    module = attention()
    inputs = inputs_of(module)
    before = theirs()
    with replace_mmcv_op():
        with replace_mmcv_op() as replaced:
            assert replaced
        module(**inputs)
        assert len(spy) == 1
    assert theirs() == before
    module(**inputs)
    assert len(spy) == 1


def test_it_is_undone_after_an_exception():
    before = theirs()
    with pytest.raises(ZeroDivisionError), replace_mmcv_op():
        assert theirs() != before
        raise ZeroDivisionError
    assert theirs() == before


def test_contexts_of_two_threads_may_end_in_any_order():
    before = theirs()
    first_entered, first_may_end = threading.Event(), threading.Event()

    def first():
        with replace_mmcv_op():
            first_entered.set()
            first_may_end.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert first_entered.wait(10)
    with replace_mmcv_op():
        first_may_end.set()
        thread.join()
        assert theirs() != before
    assert theirs() == before


def test_what_others_put_on_top_meanwhile_stays(monkeypatch):
    name = mmcv_replacement.CPU_FUNCTION
    monkeypatch.setattr(mmcv_module, name, getattr(mmcv_module, name))  # put back afterwards

    def other(value, value_spatial_shapes, sampling_locations, attention_weights):
        return value

    with replace_mmcv_op():
        setattr(mmcv_module, name, other)
    assert getattr(mmcv_module, name) is other
    monkeypatch.undo()


def test_a_subclass_with_a_forward_of_its_own_keeps_it_and_super_runs_on_ours(spy):
    class Own(MultiScaleDeformableAttention):
        def forward(self, query, **_):
            return query * 2

    class Around(MultiScaleDeformableAttention):
        def forward(self, *arguments, **keywords):
            return super().forward(*arguments, **keywords) + 1

    own, around = attention(Own), attention(Around)
    forwards = Own.forward, Around.forward
    inputs = inputs_of(own)
    expected = around(**inputs)
    with replace_mmcv_op():
        assert (Own.forward, Around.forward) == forwards
        assert own(**inputs).equal(inputs['query'] * 2)
        assert not spy
        output = around(**inputs)
    assert len(spy) == 1
    assert_all_close([output.detach()], [expected.detach()])


def _no_class(patch):
    patch.delattr(mmcv_module, 'MultiScaleDeformableAttention')


def _no_function(patch):
    patch.delattr(mmcv_module, mmcv_replacement.GPU_FUNCTION)


def _another_signature(patch):
    function = lambda value, sampling_locations, shapes: value  # noqa: E731
    patch.setattr(mmcv_module, mmcv_replacement.CPU_FUNCTION, function)


def _another_forward(patch):
    patch.setattr(MultiScaleDeformableAttention, 'forward', lambda self, query: query)


def _another_calculation(patch):
    namespace = vars(mmcv_module)
    exec('def forward(self, query): return multi_scale_deformable_attn_pytorch', namespace)
    patch.setattr(MultiScaleDeformableAttention, 'forward', namespace.pop('forward'))


def _class_without_forward(patch):
    patch.setattr(mmcv_module, mmcv_replacement.GPU_FUNCTION, type('Odd', (), {}))


def _number_for_a_function(patch):
    patch.setattr(mmcv_module, mmcv_replacement.CPU_FUNCTION, 5)


def _nothing_for_a_class(patch):
    patch.setattr(mmcv_module, mmcv_replacement.ATTENTION, None)


def _no_mmcv(patch):
    patch.setitem(sys.modules, mmcv_replacement.MODULE, None)


@pytest.mark.parametrize(
    'change, told',
    [
        (_no_class, 'has no MultiScaleDeformableAttention'),
        (_no_function, 'has no MultiScaleDeformableAttnFunction'),
        (_another_signature, r"takes \('value', 'sampling_locations', 'shapes'\), expected \('va"),
        (_another_forward, 'does not call mmcv.*MultiScaleDeformableAttnFunction'),
        (_another_calculation, 'does not call mmcv.*MultiScaleDeformableAttnFunction'),
        (_class_without_forward, 'is not a function with a signature, but None'),
        (_number_for_a_function, 'is not a function with a signature, but 5'),
        (_nothing_for_a_class, 'does not call mmcv.*MultiScaleDeformableAttnFunction'),
        (_no_mmcv, 'cannot be imported'),
    ],
)
def test_an_unexpected_mmcv_is_left_alone_with_one_warning(change, told, monkeypatch):
    with monkeypatch.context() as patch:
        change(patch)
        before = dict(vars(mmcv_module))
        with pytest.warns(RuntimeWarning, match=told) as caught, replace_mmcv_op() as replaced:
            assert not replaced
            assert vars(mmcv_module) == before
        assert len(caught) == 1
        assert caught[0].filename == __file__
    # What did not begin must not end either.
    with replace_mmcv_op() as replaced:
        assert replaced


def test_the_compiled_operator_of_mmcv_stays_where_ours_has_no_kernels(
    monkeypatch, spy, branch_for_gpus
):
    compiled = types.ModuleType('mmcv._ext')
    compiled.__file__ = '_ext.so'
    compiled.ms_deform_attn_forward = lambda value, *_, im2col_step: value.new_full(
        (2, 6, 24), im2col_step
    )
    monkeypatch.setitem(sys.modules, 'mmcv._ext', compiled)
    monkeypatch.setattr(mmcv_module, 'ext_module', compiled)
    module = attention(im2col_step=7)
    module.output_proj = torch.nn.Identity()
    inputs = inputs_of(module)
    with replace_mmcv_op(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        module(**inputs)
        assert len(spy) == 1
        assert not caught
        monkeypatch.setattr(_native, 'has_kernels', lambda value: False)
        output = module(**inputs)
    assert len(spy) == 1
    torch.testing.assert_close(output - inputs['query'], torch.full_like(output, 7.0))
    (warning,) = caught
    assert "mmcv's own multi-scale deformable attention runs on cpu" in str(warning.message)


def run(code):
    """stdout of a fresh interpreter."""
    done = run_python(f"import warnings; warnings.simplefilter('error', RuntimeWarning)\n{code}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_operator_loads_no_mmcv():
    code = 'import ddetr_plugin.ops, sys; print("mmcv" in sys.modules, "mmdet" in sys.modules)'
    assert run(code) == 'False False'


def test_one_line_of_a_config_accelerates_the_process_to_its_end(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['ddetr_plugin.accelerate'])\n")
    code = f"""
import gc, torch
from mmengine.config import Config
Config.fromfile({str(config)!r})
gc.collect()
from mmcv.ops import MultiScaleDeformableAttention
from ddetr_plugin.ops import mmcv_replacement, replace_mmcv_op
calls = []
real = mmcv_replacement.ms_deform_attn
mmcv_replacement.ms_deform_attn = lambda *a: calls.append(1) or real(*a)
with replace_mmcv_op():
    pass
module = MultiScaleDeformableAttention(8, 2, 1, 1)
module(torch.rand(6, 1, 8), reference_points=torch.rand(1, 6, 1, 2),
       spatial_shapes=torch.tensor([[2, 3]]), level_start_index=torch.tensor([0]))
print(len(calls))
"""
    assert run(code) == '1'
