"""What the numbers of a benchmark depend on, and where they are written."""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

import torch

from benchmarks.processes import ROOT
from ddetr_plugin.ops import native_load_error
from ddetr_plugin.ops._native import cuda_load_error


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

    def git(*arguments):
        done = subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True)
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
