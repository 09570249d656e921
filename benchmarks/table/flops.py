"""Parameters and multiply-adds of a detector, without computing anything.

One multiply-add counts once: what the field's papers print as "FLOPs" (DETR, arXiv:2005.12872, A.4;
torch's own counter counts two). Counted are matrix products, convolutions, attention and
multi-scale deformable attention; not what is done once per element, such as norms, activations
and softmax.
"""

import json
from collections import Counter
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ddetr_plugin.ops import native_load_error
from ddetr_plugin.ops.torch_private import lookup

__all__ = [
    'average_multiply_adds',
    'count_multiply_adds',
    'count_parameters',
    'model_multiply_adds',
    'picture_sizes',
]

# torch's attention kernel for CPUs.
CPU_ATTENTION = 'torch.ops.aten._scaled_dot_product_flash_attention_for_cpu'
# Bilinear interpolation of four neighbours and the weighted sum, per sampled channel: the
# 5 N_q K C of arXiv:2010.04159, A.1.
PER_SAMPLED_CHANNEL = 5
# The official evaluation's size of a picture: the short side, unless the long one exceeds its own.
SHORT_SIDE, LONG_SIDE = 800, 1333


def _deformable_flops(value, samples):
    """Of `value` (B, S, M, D) sampled at (B, Q, M, L, P); both are shapes."""
    batch, queries, heads, levels, points = samples[:5]
    return 2 * PER_SAMPLED_CHANNEL * batch * queries * heads * levels * points * value[-1]


def _forward_flops(value, shapes, starts, locations, *_, **__):
    return _deformable_flops(value, locations)


def _fused_flops(value, shapes, starts, reference, offsets, *_, **__):
    return _deformable_flops(value, offsets)


def _attention_flops(query, key, value, *_, **__):
    return sdpa_flop_count(query, key, value)


def _formulas():
    """What torch's counter does not know: our operators, and attention's kernel for CPUs."""
    if native_load_error() is not None:
        raise ValueError(
            'multi-scale deformable attention is counted as one operator, which must be built: '
            f'pip install --no-build-isolation -e . ({native_load_error()})'
        )
    ops = torch.ops.ddetr_plugin
    return {
        ops.ms_deform_attn_forward: _forward_flops,
        ops.ms_deform_attn_fused_forward: _fused_flops,
        lookup(CPU_ATTENTION): _attention_flops,
    }


def count_parameters(model):
    """(trainable, all) parameters. The first is what the official releases print."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def count_multiply_adds(forward, model=None):
    """Multiply-adds of `forward()`, by operator.

    Args:
        forward: function without arguments; its tensors may be fake.
        model: that it calls. Its parameters need no gradients, and are left as they were.

    Returns:
        dict: name of the operator, such as 'aten.convolution', -> multiply-adds.

    Raises:
        ValueError: the native operator is missing.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    # torch's fast path for nn.MultiheadAttention is one operator that the counter does not know.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    parameters = list(model.parameters()) if model is not None else []
    trained = [p.requires_grad for p in parameters]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for parameter in parameters:
            parameter.requires_grad_(False)
        with torch.no_grad(), counter:
            forward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter, requires_grad in zip(parameters, trained):
            parameter.requires_grad_(requires_grad)
    counts = counter.get_flop_counts().get('Global', {})
    return {str(operator): flops // 2 for operator, flops in counts.items()}


def model_multiply_adds(model, height, width):
    """Multiply-adds of one picture through a detector, by operator.

    Runs on tensors without contents. A model whose control flow reads what it has computed, such
    as non-maximum suppression, is run once in earnest.

    Args:
        model: of mmdet's BaseDetector, on the CPU, in evaluation mode.
        height, width: of the network's input, pixels.
    """

    def forward():
        samples = [blank_sample(height, width)]
        return model(torch.zeros(1, 3, height, width), samples, mode='tensor')

    fake_tensor = lookup('torch._subclasses.fake_tensor')
    try:
        with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True):
            return count_multiply_adds(forward, model)
    except (
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
        fake_tensor.UnsupportedOperatorException,
    ):
        return count_multiply_adds(forward, model)


def blank_sample(height, width):
    """mmdet's DetDataSample of an unpadded picture without objects."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    shape = (height, width)
    metainfo = dict(img_shape=shape, ori_shape=shape, batch_input_shape=shape)
    sample = DetDataSample(metainfo=dict(metainfo, scale_factor=(1.0, 1.0)))
    # Sparse R-CNN asks for it in every mode.
    sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return sample


def average_multiply_adds(model, sizes):
    """Mean multiply-adds over pictures.

    Args:
        model: see `model_multiply_adds`.
        sizes: list of (height, width).
    """
    costs = {size: sum(model_multiply_adds(model, *size).values()) for size in set(sizes)}
    return sum(costs[size] * times for size, times in Counter(sizes).items()) / len(sizes)


def input_size(height, width):
    """(height, width) of the network's input for a picture: short side 800, long at most 1333."""
    scale = min(SHORT_SIDE / min(height, width), LONG_SIDE / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def picture_sizes(source, limit):
    """The network's input sizes for the first `limit` pictures, by id or name.

    Args:
        source: Path of annotations in COCO's format, or of a folder of pictures.
        limit: of pictures.

    Returns:
        list of (height, width).

    Raises:
        ValueError: there are no pictures.
    """
    source = Path(source)
    if source.is_dir():
        import cv2

        # mmcv's reading turns pictures as their EXIF says, so does OpenCV's.
        names = [
            p for p in sorted(source.iterdir()) if p.suffix.lower() in ('.jpg', '.jpeg', '.png')
        ]
        pictures = [cv2.imread(str(name)) for name in names[:limit]]
        sizes = [picture.shape[:2] for picture in pictures if picture is not None]
    elif source.is_file():
        # torchvision's CocoDetection, of which others take the first pictures, sorts them, too.
        images = sorted(json.loads(source.read_text())['images'], key=lambda image: image['id'])
        images = images[:limit]
        sizes = [(image['height'], image['width']) for image in images]
    else:
        raise ValueError(f'--images {source} is neither a folder nor a file in COCO format')
    if not sizes:
        raise ValueError(f'--images {source} has no pictures')
    return [input_size(*size) for size in sizes]
