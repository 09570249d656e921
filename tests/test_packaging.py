"""The package survives the way through an sdist and a wheel."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
COMPILER = any(map(shutil.which, (os.environ.get('CXX', 'c++'), 'c++', 'g++', 'clang++')))


def run(*command, cwd, **variables):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def sdist(tmp_path_factory):
    """An sdist made from a copy that holds only what a fresh clone would."""
    source = tmp_path_factory.mktemp('source') / 'repo'
    ignored = shutil.ignore_patterns('*.so', '__pycache__', '*.egg-info', 'build')
    for name in ('ddetr_plugin', 'ops', 'configs', 'tools', 'tests'):
        shutil.copytree(REPO / name, source / name, ignore=ignored)
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'):
        if (REPO / name).exists():
            shutil.copy(REPO / name, source / name)
    # What a wheel holds does not depend on it, and compiling takes a fifth of the time.
    setup = (source / 'setup.py').read_text()
    assert setup.count("'-O3', '-std=c++17', '-fvisibility=hidden'") == 1
    (source / 'setup.py').write_text(setup.replace("'-O3'", "'-O0'", 1))
    run('setup.py', '-q', 'sdist', cwd=source)
    (archive,) = (source / 'dist').iterdir()
    return archive


def test_the_sdist_holds_every_native_source_and_every_module(sdist):
    with tarfile.open(sdist) as archive:
        packed = {name.partition('/')[2] for name in archive.getnames()}
    wanted = {
        str(path.relative_to(REPO))
        for folder, suffixes in (
            ('ops', {'.cpp', '.cu', '.h', '.cuh'}),
            ('ddetr_plugin', {'.py'}),
        )
        for path in (REPO / folder).rglob('*')
        if path.suffix in suffixes
    }
    assert wanted
    assert wanted <= packed
    assert {'setup.py', 'pyproject.toml', 'LICENSE'} <= packed
    # They could not run without the rest of the checkout.
    assert not [name for name in packed if name.startswith('tests')]


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason='no C++ compiler: the native op cannot be built')
def test_a_wheel_built_from_the_sdist_works_elsewhere_with_the_native_op(sdist, tmp_path):
    wheels, target = tmp_path / 'wheels', tmp_path / 'target'
    offline = ('--no-deps', '--no-index', '--disable-pip-version-check', '-q')
    run(
        '-m', 'pip', 'wheel', *offline, '--no-build-isolation', '-w', wheels, sdist,
        cwd=tmp_path, DDETR_BUILD_OPS='1',
    )  # fmt: skip
    (wheel,) = wheels.iterdir()
    # One for every Python: the libraries hold no symbols of its.
    assert '-cp310-abi3-' in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert 'ddetr_plugin/ops/_C.build.json' in names
    top = {name.split('/')[0] for name in names}
    assert {name for name in top if not name.endswith('.dist-info')} == {'ddetr_plugin'}
    run('-m', 'pip', 'install', *offline, '--target', target, wheel, cwd=tmp_path)
    code = (
        'import torch, ddetr_plugin.ops as ops, ddetr_plugin.engine\n'
        'print(ops.__file__)\n'
        'print(ops.native_load_error())\n'
        'shapes = torch.tensor([[2, 2]])\n'
        'start = torch.tensor([0])\n'
        'centre = torch.full((1, 1, 1, 1, 1, 2), 0.25)\n'
        'value = torch.arange(4.0).view(1, 4, 1, 1) + 5\n'
        'print(ops.ms_deform_attn(value, shapes, start, centre, torch.ones(1, 1, 1, 1, 1)).item())'
    )
    output = run('-W', 'ignore', '-c', code, cwd=tmp_path, PYTHONPATH=str(target)).splitlines()
    assert output[0].startswith(str(target))
    # (0.25, 0.25) is the centre of the first of 2 x 2 cells, whose value is 5.
    assert output[1:] == ['None', '5.0']
    report = run('-m', 'ddetr_plugin.ops', cwd=tmp_path, PYTHONPATH=str(target))
    assert '    flags: ' in report and '-DTORCH_TARGET_VERSION=0x020a' in report
