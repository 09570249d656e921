"""What a ResNet consists of: torchvision's names, which are also mmdet's and ours, and others'."""

import re
from collections.abc import Iterable, Iterator

__all__ = ['RESNETS', 'detectron2_resnet', 'resnet_depth', 'resnet_names', 'transformers_resnet']

# depth: (blocks of the stages, whether they are bottlenecks)
RESNETS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
_MAX_BLOCKS = 36  # of a stage: ResNet-152
_BLOCK = re.compile(r'layer([1-4])\.(\d+)\.(\w+)\.')
# Of a deep stem, of average pooling in the shortcut, of group norm: not torchvision's ResNets.
_OTHER = re.compile(r'stem\.|.*\.downsample\.2\.|(.*\.)?gn\d\.')


def resnet_depth(names: Iterable[str]) -> int | None:
    """The depth of the ResNet that `names` are the parameters of, by the blocks of its stages.

    Where blocks are missing it is the smallest ResNet that has all that are there. None if the
    names are of none of `RESNETS`.
    """
    names = list(names)
    found = [match.groups() for match in map(_BLOCK.match, names) if match]
    parts = {part for _, _, part in found}
    if not {'conv1', 'bn1'} <= parts or any(map(_OTHER.match, names)):
        return None
    blocks = [max((int(b) + 1 for s, b, _ in found if s == str(k)), default=0) for k in range(1, 5)]
    for depth, (counts, bottleneck) in RESNETS.items():
        fits = all(count <= limit for count, limit in zip(blocks, counts))
        if fits and bottleneck == ('conv3' in parts):
            return depth
    return None


def resnet_names(depth: int) -> list[str]:
    """All parameters and statistics of a ResNet without its classifier, counters excepted."""
    return [
        f'{module}.{parameter}'
        for module in _modules(depth)
        for parameter in (
            ('weight', 'bias', 'running_mean', 'running_var') if _is_norm(module) else ('weight',)
        )
    ]


def _modules(depth: int) -> Iterator[str]:
    counts, bottleneck = RESNETS[depth]
    yield from ('conv1', 'bn1')
    for stage, count in enumerate(counts, 1):
        for block in range(count):
            place = f'layer{stage}.{block}'
            for k in range(1, 4 if bottleneck else 3):
                yield from (f'{place}.conv{k}', f'{place}.bn{k}')
            # The first stage of basic blocks changes neither width nor resolution.
            if block == 0 and (bottleneck or stage > 1):
                yield from (f'{place}.downsample.0', f'{place}.downsample.1')


def _is_norm(module: str) -> bool:
    return module.endswith('downsample.1') or module.rpartition('.')[2].startswith('bn')


def _resnet_modules() -> list[tuple[int, int, str]]:
    """(stage, block, module) of the largest ResNet; torchvision's names, which ours are."""
    parts = [f'{kind}{k}' for k in (1, 2, 3) for kind in ('conv', 'bn')]
    parts += ['downsample.0', 'downsample.1']
    return [(s, b, part) for s in (1, 2, 3, 4) for b in range(_MAX_BLOCKS) for part in parts]


def detectron2_resnet() -> dict[str, str]:
    """Our names of a ResNet's modules to detectron2's."""
    names = {'backbone.conv1': 'backbone.stem.conv1', 'backbone.bn1': 'backbone.stem.conv1.norm'}
    for stage, block, part in _resnet_modules():
        other = part.replace('downsample.0', 'shortcut').replace('downsample.1', 'shortcut.norm')
        other = re.sub(r'^bn(\d)', r'conv\1.norm', other)
        names[f'backbone.layer{stage}.{block}.{part}'] = f'backbone.res{stage + 1}.{block}.{other}'
    return names


def transformers_resnet() -> dict[str, str]:
    """Transformers' names of its own ResNet's modules to torchvision's, without prefixes."""
    names = {
        'embedder.embedder.convolution': 'conv1',
        'embedder.embedder.normalization': 'bn1',
    }
    kinds = {'conv': 'convolution', 'bn': 'normalization'}
    for stage, block, part in _resnet_modules():
        place = f'encoder.stages.{stage - 1}.layers.{block}'
        if part.startswith('downsample'):
            other = f'shortcut.{"convolution" if part.endswith("0") else "normalization"}'
        else:
            other = f'layer.{int(part[-1]) - 1}.{kinds[part[:-1]]}'
        names[f'{place}.{other}'] = f'layer{stage}.{block}.{part}'
    return names
