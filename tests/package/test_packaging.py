"""The package survives the way through an sdist and a wheel."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ddetr_plugin.apis import list_configs
from ddetr_plugin.ops import native_load_error

REPO = Path(__file__).resolve().parents[2]
OFFLINE = ('--no-deps', '--no-index', '--disable-pip-version-check', '-q')
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
    ignored = shutil.ignore_patterns('*.so', '*.build.json', '__pycache__', '*.egg-info', 'build')
    for name in ('ddetr_plugin', 'ops', 'configs', 'tools', 'tests'):
        shutil.copytree(REPO / name, source / name, ignore=ignored)
    for name in (
        'setup.py',
        'pyproject.toml',
        'MANIFEST.in',
        'README.md',
        'LICENSE',
        'model-index.yml',
    ):
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
            ('ddetr_plugin', {'.py', '.typed'}),
            ('configs', {'.py', '.yml', '.md'}),
            ('tools', {'.py'}),
        )
        for path in (REPO / folder).rglob('*')
        if path.suffix in suffixes
    }
    assert wanted
    assert wanted <= packed
    assert {'setup.py', 'pyproject.toml', 'LICENSE', 'model-index.yml'} <= packed
    # They could not run without the rest of the checkout.
    assert not [name for name in packed if name.startswith('tests')]


COMPILER_OF_ITS_OWN = """#!{python}
# Checks a source and the headers it names, and takes the library from the checkout.
import os, shutil, sys
arguments = sys.argv[1:]
if '-c' in arguments:
    arguments[arguments.index('-c')] = '-E'
elif '-shared' in arguments:
    target = arguments[arguments.index('-o') + 1]
    shutil.copy(os.path.join({built!r}, os.path.basename(target)), target)
    sys.exit()
os.execvp({compiler!r}, [{compiler!r}, *arguments])
"""


@pytest.fixture(scope='module')
def wheel(sdist, tmp_path_factory):
    """A wheel built from the sdist, for a CPU.

    Where the checkout has the library, it is not compiled once more: every source of the sdist goes
    through the preprocessor, which needs the same headers.
    """
    folder = tmp_path_factory.mktemp('wheel')
    variables = dict(DDETR_BUILD_OPS='1', CUDA_VISIBLE_DEVICES='')
    compiler = shlex.split(os.environ.get('CXX', 'c++'))[0]
    if native_load_error() is None:
        script = folder / 'compiler' / 'c++'
        script.parent.mkdir()
        built = str(REPO / 'ddetr_plugin' / 'ops')
        script.write_text(
            COMPILER_OF_ITS_OWN.format(
                python=sys.executable, built=built, compiler=shutil.which(compiler)
            )
        )
        script.chmod(0o755)
        variables['CXX'] = str(script)
    run(
        '-m', 'pip', 'wheel', *OFFLINE, '--no-build-isolation', '-w', folder / 'wheels', sdist,
        cwd=folder, **variables,
    )  # fmt: skip
    (wheel,) = (folder / 'wheels').iterdir()
    return wheel


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed in, apart from everything else."""
    target = tmp_path_factory.mktemp('installed')
    command = ('-m', 'pip', 'install', *OFFLINE, '--no-compile', '--target', target, wheel)
    run(*command, cwd=target)
    return target


needs_compiler = pytest.mark.skipif(
    not COMPILER, reason='no C++ compiler: the native op cannot be built'
)


@pytest.mark.slow
@needs_compiler
def test_a_wheel_holds_the_package_with_its_library_configs_and_tools_and_no_more(wheel):
    # One for every Python: the libraries hold no symbols of its.
    assert '-cp310-abi3-' in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {'ddetr_plugin/ops/_C.build.json', 'ddetr_plugin/py.typed'} <= names
    top = {name.split('/')[0] for name in names}
    assert {name for name in top if not name.endswith('.dist-info')} == {'ddetr_plugin'}
    mim = 'ddetr_plugin/.mim/'
    shipped = {name.removeprefix(mim) for name in names if name.startswith(mim)}
    sources = [path for name in ('configs', 'tools') for path in (REPO / name).rglob('*')]
    assert shipped == {'model-index.yml'} | {
        str(path.relative_to(REPO))
        for path in sources
        if path.is_file() and '__pycache__' not in path.parts
    }


@pytest.mark.slow
@needs_compiler
def test_a_new_user_lists_builds_inherits_trains_and_predicts(installed, tiny_coco, tmp_path):
    output = run(
        '-W', 'ignore', REPO / 'tests' / 'package' / 'installed_wheel.py', tiny_coco.annotations,
        tiny_coco.images, cwd=tmp_path, PYTHONPATH=str(installed),
    )  # fmt: skip
    found = json.loads(output.splitlines()[-1])
    assert found['package'] == str(installed / 'ddetr_plugin') and found['typed']
    # `python -m ddetr_plugin.ops`: native, and as exact as it has to be.
    assert found['operator_status'] == 0, found['operator']
    assert f'file: {installed}' in found['operator']
    assert '-DTORCH_TARGET_VERSION=0x020a' in found['operator']
    assert found['configs'] == [record.name for record in list_configs()]
    assert found['parameters'] == 39_844_438
    assert len(found['losses']) == 2 and all(math.isfinite(loss) for loss in found['losses'])
    assert found['classes'] == list(tiny_coco.classes)
    assert [len(box) for box in found['boxes']] == [4] * 10
