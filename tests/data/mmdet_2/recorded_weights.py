"""The weights and images of the recordings, which depend on names and shapes alone."""

import math
import re
import zlib

import numpy as np
import torch

BATCH_SHAPE = (96, 128)
IMAGE_SHAPES = [(96, 128), (80, 64)]


def numbers(name, shape):
    """Float32 numbers of a standard normal distribution."""
    state = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(np.asarray(state.standard_normal(shape), np.float32))


def random_weights(lines):
    """A state dict from lines of name, shape, and the name of the same tensor before it, if any."""
    state = {}
    for line in lines:
        name, sizes, *same = line.split(' ')
        shape = tuple(map(int, filter(None, sizes.split(','))))
        if same:
            state[name] = state[same[0]]
            continue
        if name.endswith('num_batches_tracked'):
            state[name] = torch.zeros(shape, dtype=torch.long)
            continue
        weight = numbers(name, shape) * (
            0.05 if len(shape) < 2 else 1 / math.sqrt(math.prod(shape[1:]))
        )
        if re.search(r'(bn\d|gn|norm\w*|norms\.\d|downsample\.1)\.weight$|running_var$', name):
            weight += 1
        # Points that leave the middle of their cell.
        if name.endswith('sampling_offsets.bias'):
            weight *= 40
        state[name] = weight
    return state


def images():
    """(2, 3, H, W), zero where the second is padded."""
    batch = numbers('images', (2, 3, *BATCH_SHAPE))
    for image, (height, width) in zip(batch, IMAGE_SHAPES):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return batch
