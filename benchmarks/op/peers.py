"""The operators that cuda.py compares ours with, each behind the arguments of ours.

None of them is needed: what cannot be imported is left out, and `INSTALL` says how to get it.
"""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.op.cases import FUSED, grid_sample_attention
from ddetr_plugin.ops import ms_deform_attn, ms_deform_attn_reference

# Positions in the arguments of the plain and of the fused operator.
PLAIN_COORDINATES, FUSED_COORDINATES = (3, 4), (3, 4, 5)
LOCATIONS, REFERENCE_AND_OFFSETS = (3,), (3, 4)
# Pictures of one launch, at most, of the operators that want to know.
IM2COL_STEP = 64
INSTALL = {
    'torch-ms-deform-attn': 'pip install torch-ms-deform-attn==0.1.1',
    'mmcv': 'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary mmcv mmcv==2.1.0',
    'Deformable DETR': 'git clone https://github.com/fundamentalvision/Deformable-DETR, then '
    'python setup.py install in its models/ops',
    'deformops': 'pip install deformops==3.0.1 (Python 3.12 or 3.13, torch >= 2.11; for its CUDA '
    'backend: --no-binary deformops --no-build-isolation)',
    'FlashDeformAttn': 'git clone https://github.com/OpenGVLab/DCNv4, then '
    'pip install --no-build-isolation ./DCNv4/DCNv4_op on a machine with a GPU up to sm_90',
}


class Peer(NamedTuple):
    """An implementation, and what it takes.

    `function` has the arguments of `ms_deform_attn` or `ms_deform_attn_fused`, unless `pack` makes
    others of them, outside of what is timed; `reference` is then the definition for those. Where
    `value` has 16 bits, the arguments at positions `wide` stay float32 and the others follow it.
    """

    function: Callable
    wide: tuple[int, ...] = ()
    pack: Callable | None = None
    reference: Callable | None = None


def find_peers() -> tuple[dict[str, Peer], dict[str, Peer], dict[str, str]]:
    """What can be imported here.

    Returns:
        Name -> `Peer` for the plain operator and for the fused one, ours first; and name -> why
        it is missing, and how to install it.
    """
    plain = {
        'ours': Peer(ms_deform_attn, PLAIN_COORDINATES),
        'grid_sample': Peer(grid_sample_attention),
    }
    fused = {
        name: Peer(function, FUSED_COORDINATES if 'ours' in name else ())
        for name, function in FUSED.items()
    }
    missing = {}
    for name, find in (
        ('torch-ms-deform-attn', _torch_ms_deform_attn),
        ('mmcv', _mmcv),
        ('Deformable DETR', _published_operator),
        ('deformops', _deformops),
        ('FlashDeformAttn', _flash_deform_attn),
    ):
        try:
            more, more_fused = find()
        # Compiled packages fail in many ways, and some ask for a GPU when they are imported.
        except Exception as problem:
            reason = (str(problem).splitlines() or [''])[0]
            missing[name] = f'{type(problem).__name__}: {reason}; to install: {INSTALL[name]}'
            continue
        plain.update(more)
        fused.update(more_fused)
    return plain, fused, missing


def _torch_ms_deform_attn():
    from torch_ms_deform_attn import ms_deform_attn as package

    return {'torch-ms-deform-attn': Peer(package, PLAIN_COORDINATES)}, {}


def _mmcv():
    spec = importlib.util.find_spec('mmcv')
    # mmcv-lite, and what stands in for mmcv's extension, has no operator.
    if spec is None or not list(Path(spec.origin).parent.glob('_ext*')):
        raise ImportError('mmcv with compiled operators is not installed')
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction as Function

    return {'mmcv': Peer(lambda *inputs: Function.apply(*inputs, IM2COL_STEP))}, {}


def _published_operator():
    """The operator that Deformable DETR was published with, as a differentiable function."""
    compiled = importlib.import_module('MultiScaleDeformableAttention')

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.save_for_backward(*inputs)
            return compiled.ms_deform_attn_forward(*inputs, IM2COL_STEP)

        @staticmethod
        def backward(ctx, grad_output):
            value, locations, weights = compiled.ms_deform_attn_backward(
                *ctx.saved_tensors, grad_output.contiguous(), IM2COL_STEP
            )
            return value, None, None, locations, weights

    return {'Deformable DETR': Peer(Function.apply)}, {}


def _deformops():
    """Its own choice of kernel; Triton with float32 sums of the gradient of `value`; CUDA.

    Weights have the dtype of `value`, locations may be wider. On sm_90 its own choice sums that
    gradient in the dtype of `value`.
    """
    from deformops.registry import Backend, msda

    def with_backend(backend):
        return lambda *inputs: msda(*inputs, method='linear', backend=backend)

    def with_softmax(value, spatial_shapes, level_start_index, locations, logits):
        return msda(value, spatial_shapes, level_start_index, locations, logits, method='softmax')

    plain = {
        'deformops': Peer(with_backend(None), LOCATIONS),
        'deformops Triton fp32': Peer(with_backend(Backend.TRITON), LOCATIONS),
        'deformops CUDA': Peer(with_backend(Backend.CUDA), LOCATIONS),
    }
    return plain, {'PyTorch + deformops': Peer(_locate(with_softmax), REFERENCE_AND_OFFSETS)}


def _flash_deform_attn():
    """FlashDeformAttn of DCNv4, whose kernel does the softmax over levels and points itself.

    It takes locations and logits in one tensor and in the dtype of `value`. For the plain operator
    that tensor is made of the logarithms of the weights, outside of what is timed.
    """
    from DCNv4.functions import FlashDeformAttnFunction

    def packed(value, spatial_shapes, level_start_index, points, number):
        return FlashDeformAttnFunction.apply(
            value, spatial_shapes, level_start_index, points, IM2COL_STEP, number
        )

    def from_packed(value, spatial_shapes, level_start_index, points):
        number = points.shape[-1] // (3 * len(spatial_shapes))
        return packed(value, spatial_shapes, level_start_index, points, number)

    def from_locations(value, spatial_shapes, level_start_index, locations, logits):
        points = pack_points(locations.to(value.dtype), logits)
        return packed(value, spatial_shapes, level_start_index, points, locations.shape[4])

    plain = Peer(from_packed, (), pack_arguments, packed_reference)
    fused = Peer(_locate(from_locations), REFERENCE_AND_OFFSETS)
    return {'FlashDeformAttn': plain}, {'PyTorch + FlashDeformAttn': fused}


def pack_points(locations: Tensor, logits: Tensor) -> Tensor:
    """(B, Q, M, 3 * L * P): of a query and head first all (x, y), level by level, then all logits.

    Args:
        locations: (B, Q, M, L, P, 2).
        logits: (B, Q, M, L, P), of the same dtype.
    """
    return torch.cat([locations.flatten(-3), logits.flatten(-2)], dim=-1)


def pack_arguments(inputs: list) -> list:
    """What FlashDeformAttn takes for arguments of `ms_deform_attn`; its result is the same.

    Args:
        inputs: value, shapes, starts, locations, weights; the weights of a query and head are
            positive and sum to one.
    """
    value, shapes, starts, locations, weights = (x.detach() for x in inputs)
    points = pack_points(locations, weights.log())
    return [value.requires_grad_(), shapes, starts, points.requires_grad_()]


def packed_reference(value, spatial_shapes, level_start_index, points):
    """The definition of the operator for such arguments."""
    levels = len(spatial_shapes)
    samples = points.shape[-1] // 3
    locations = points[..., : 2 * samples].unflatten(-1, (levels, -1, 2))
    weights = points[..., 2 * samples :].softmax(-1).unflatten(-1, (levels, -1))
    return ms_deform_attn_reference(value, spatial_shapes, level_start_index, locations, weights)


def _locate(operator):
    """An operator of logits with the arguments of `ms_deform_attn_fused`."""

    def located(value, spatial_shapes, level_start_index, reference, offsets, logits):
        locations = reference[:, :, None, :, None] + offsets / spatial_shapes.flip(-1)[:, None]
        return operator(value, spatial_shapes, level_start_index, locations, logits)

    return located
