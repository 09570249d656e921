"""What the benchmarks share: alternating timings, and a record of what the numbers depend on."""

import importlib.metadata
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch

from ddetr_plugin.ops import native_load_error
from ddetr_plugin.ops._native import cuda_load_error


def milliseconds(call, device):
    """Time of one call."""
    if device == 'cuda':
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def spread(values):
    """Median and quartiles of milliseconds; of a single one, that one."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {
        'median_ms': round(statistics.median(values), 4),
        'quartiles_ms': [round(low, 4), round(high, 4)],
    }


def measure(calls, device, rounds, warm_up=2, untimed=0):
    """Medians and quartiles of each call; they take turns. Ratios are to the one named 'ours'.

    Args:
        calls: name -> function without arguments.
        device: 'cpu' or 'cuda'.
        rounds: how often each is timed.
        warm_up: rounds before these.
        untimed: in its turn, a call first runs so often untimed. A short one then finds in the
            caches what it left there itself, as it would find what the layer before it left, and
            not what a peer did.
    """
    times = {name: [] for name in calls}
    for number in range(rounds + warm_up):
        for name, call in calls.items():
            for _ in range(untimed):
                call()
            taken = milliseconds(call, device)
            if number >= warm_up:
                times[name].append(taken)
    result = {}
    for name, values in times.items():
        result[name] = {**spread(values), 'min_ms': round(min(values), 4)}
    for name in calls:
        ratio = result[name]['median_ms'] / result['ours']['median_ms']
        result[name]['times_ours'] = round(ratio, 2)
    return result


def random_batch(batch, height, width, device, num_classes=80, objects=8):
    """Random pictures, each with boxes at least a tenth of it wide, and the masks that fill them.

    Returns:
        (batch, 3, height, width) tensor, and list of mmdet's DetDataSample.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, 3, height, width, generator=generator).to(device)
    samples = []
    for _ in range(batch):
        low = torch.rand(objects, 2, generator=generator) * 0.6
        extent = torch.rand(objects, 2, generator=generator) * 0.3 + 0.1
        boxes = torch.cat([low, low + extent], dim=1) * torch.tensor([width, height] * 2)
        masks = torch.zeros(objects, height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
            mask[top:bottom, left:right] = 1
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                batch_input_shape=(height, width),
                pad_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes.to(device),
            labels=torch.randint(num_classes, (objects,), generator=generator).to(device),
            masks=BitmapMasks(masks.numpy(), height, width),
        )
        samples.append(sample)
    return inputs, samples


def installed_versions(names):
    """Version of each installed package of `names`."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def environment(device):
    """What the numbers depend on."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments):
        done = subprocess.run(['git', *arguments], cwd=root, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    processor = platform.processor()
    if Path('/proc/cpuinfo').exists():
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
        processor = names[0] if names else processor
    native = native_load_error() is None
    return {
        'device': torch.cuda.get_device_name() if device == 'cuda' else processor,
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'cuda': torch.version.cuda,
        'python': platform.python_version(),
        'packages': installed_versions(('mmdet', 'mmengine', 'mmcv', 'mmcv-lite', 'numpy')),
        'operator': torch.ops.ddetr_plugin.build_info() if native else native_load_error(),
        'cuda_kernels': cuda_load_error() or torch.ops.ddetr_plugin.cuda_build_info(),
        'cpu_capability': torch.ops.ddetr_plugin.cpu_capability() if native else None,
        'commit': git('rev-parse', '--short', 'HEAD'),
        'uncommitted_changes': bool(git('status', '--porcelain', '--untracked-files=no')),
    }


def publish(report, path=None):
    """Prints a report as JSON and writes it to `path`, if there is one."""
    text = json.dumps(report, indent=1)
    print(text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + '\n', encoding='utf-8')
