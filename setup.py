"""Installs ddetr_plugin and builds its operator from ops/.

    pip install --no-build-isolation -e .

DDETR_BUILD_OPS     unset: build where torch and a C++ compiler are found, else install pure Python
                    and say so; 1: fail if it cannot be built; 0: do not build. A compile error
                    always fails the installation.
FORCE_CUDA=1        build the CUDA kernels although no GPU is visible (needs nvcc).
TORCH_CUDA_ARCH_LIST  GPU generations to build for, such as "8.0;9.0+PTX"; unset: all from 7.5 on
                    that nvcc knows.

A wheel also holds configs/, tools/ and model-index.yml, in ddetr_plugin/.mim, where mim and
mmengine look for them. An editable installation reads those of the checkout.

The CUDA kernels are a library of their own, ddetr_plugin.ops._C_cuda. Beside each library lies a
record of how it was built, _C.build.json and _C_cuda.build.json, which
`python -m ddetr_plugin.ops` prints.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
TORCH_NEEDED = (2, 10)
# What OpenMMLab's packages ship beside their modules, and the folder they ship it in.
MIM = ('configs', 'tools', 'model-index.yml')
MIM_FOLDER = Path('ddetr_plugin', '.mim')
# PTX of the generation that most are like: what is newer than nvcc compiles it when it starts.
CUDA_ARCHITECTURES = ('7.5', '8.0', '8.6', '8.9', '9.0+PTX', '10.0', '12.0')


def version() -> str:
    """The version, read without importing the package (which would import torch)."""
    text = (ROOT / 'ddetr_plugin' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '([^']+)'", text)[1]


class BuildWithIndex(build_py):
    """Adds configs, tools and the index of models to what is built, never to the sources."""

    def run(self):
        super().run()
        # Without those of an earlier build that are gone by now.
        shutil.rmtree(Path(self.build_lib, MIM_FOLDER), ignore_errors=True)
        for path, target in self._index_files():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def get_outputs(self, include_bytecode=1):
        return super().get_outputs(include_bytecode) + [str(to) for _, to in self._index_files()]

    def _index_files(self) -> list[tuple[Path, Path]]:
        """Each file in the sources, and its place in the build folder."""
        if self.editable_mode:
            return []
        paths = [path for name in MIM for path in (ROOT / name, *(ROOT / name).rglob('*'))]
        files = [path for path in paths if path.suffix in ('.py', '.yml', '.md')]
        return [(p, Path(self.build_lib, MIM_FOLDER, p.relative_to(ROOT))) for p in files]


def has_compiler() -> bool:
    """Whether some C++ compiler is on the path, or named by CXX."""
    names = [os.environ['CXX'].split()[0]] if os.environ.get('CXX') else ['c++', 'g++', 'clang++']
    return any(shutil.which(name) for name in names)


def reason_not_to_build() -> str | None:
    """Why the operator cannot be built here; None when it can."""
    try:
        import torch
    except ImportError as error:
        return (
            f'torch cannot be imported by the build ({error}); install torch first and pass '
            '--no-build-isolation to pip'
        )
    found = tuple(int(part) for part in torch.__version__.split('.')[:2])
    if found < TORCH_NEEDED:
        return f'torch >= 2.10 is needed to build, found {torch.__version__}'
    if not has_compiler():
        return 'no C++ compiler was found (install g++, or set CXX)'
    return None


def notice(text: str) -> None:
    """Says it so that nobody overlooks it in the output of pip."""
    bar = '*' * 88
    print(f'{bar}\nddetr_plugin: {text}\n{bar}', file=sys.stderr, flush=True)


def toolkit_version(cuda_home: str) -> str:
    """The version of nvcc, such as '13.0'; '' when it does not say."""
    nvcc = os.path.join(cuda_home, 'bin', 'nvcc')
    try:
        text = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout
    except OSError:
        return ''
    found = re.search(r'release (\d+\.\d+)', text)
    return found[1] if found else ''


def find_toolkit(usual: Path = Path('/usr/local/cuda')) -> None:
    """Sets CUDA_HOME where torch would look in vain.

    torch takes the folder above that of nvcc. Where nvcc on the path is a script that starts the
    real one, that folder has no headers, and `usual` may have them.
    """
    nvcc = shutil.which('nvcc')
    if nvcc is None or os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH'):
        return
    header = Path('include', 'cuda_runtime_api.h')
    if not (Path(nvcc).parents[1] / header).exists() and (usual / header).exists():
        os.environ['CUDA_HOME'] = str(usual)


def cuda_wanted() -> bool:
    """Whether a toolkit that fits torch is there, and a GPU is visible or FORCE_CUDA=1."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    forced = os.environ.get('FORCE_CUDA') == '1'
    # First: such a torch has no CUDA_HOME either.
    if forced and torch.version.cuda is None:
        sys.exit(f'FORCE_CUDA=1, but torch {torch.__version__} is a build without CUDA')
    if forced and CUDA_HOME is None:
        sys.exit('FORCE_CUDA=1, but no CUDA toolkit was found; set CUDA_HOME')
    if CUDA_HOME is None or not (forced or torch.cuda.is_available()):
        return False
    toolkit, wanted = toolkit_version(CUDA_HOME), torch.version.cuda
    if toolkit.split('.')[0] == wanted.split('.')[0]:
        return True
    reason = (
        f'torch {torch.__version__} was made with CUDA {wanted}, but the toolkit in {CUDA_HOME} is '
        f'{toolkit or "of unknown version"}; set CUDA_HOME to one of CUDA '
        f'{wanted.split(".")[0]}.x'
    )
    if forced:
        sys.exit(f'FORCE_CUDA=1, but {reason}')
    notice(f'building for the CPU alone: {reason}.')
    return False


def cuda_architectures() -> list[str]:
    """What TORCH_CUDA_ARCH_LIST says, else those of ours that the CUDA toolkit can compile for."""
    wish = os.environ.get('TORCH_CUDA_ARCH_LIST')
    if wish:
        return wish.replace(' ', ';').split(';')
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = [os.path.join(CUDA_HOME, 'bin', 'nvcc'), '--list-gpu-code']
    known = subprocess.run(nvcc, capture_output=True, text=True, check=True).stdout.split()
    return [
        name
        for name in CUDA_ARCHITECTURES
        if 'sm_' + name.removesuffix('+PTX').replace('.', '') in known
    ]


def first_line(*command: str) -> str:
    """What a compiler says of itself; '' when it does not."""
    try:
        text = subprocess.run([*command, '--version'], capture_output=True, text=True).stdout
    except OSError:
        return ''
    return text.partition('\n')[0]


def build_record(built, library: Path, command) -> dict:
    """What ddetr_plugin/ops/build_record.py reads: how an extension was compiled.

    Args:
        built: the extension, after its compilation.
        library: the file that came out.
        command: the build_ext that compiled it.
    """
    import torch
    from torch.utils import cpp_extension

    macros = [
        f'-D{name}' if value is None else f'-D{name}={value}' for name, value in built.define_macros
    ]
    flags = built.extra_compile_args
    compiler = shlex.split(cpp_extension.get_cxx_compiler())
    record = {
        'sha256': hashlib.sha256(library.read_bytes()).hexdigest(),
        'compiler': first_line(*compiler),
        'cxx_flags': shlex.join([*command.compiler.compiler_so[1:], *macros, *flags['cxx']]),
        'torch': torch.__version__,
        'torch_cuda': torch.version.cuda,
        'cxx11_abi': torch.compiled_with_cxx11_abi(),
        'stable_abi': '.'.join(map(str, TORCH_NEEDED)),
        'python': platform.python_version(),
        'platform': sysconfig.get_platform(),
    }
    if any(source.endswith('.cu') for source in built.sources):
        record['nvcc'] = toolkit_version(cpp_extension.CUDA_HOME)
        record['nvcc_flags'] = shlex.join(
            [*macros, *cpp_extension.COMMON_NVCC_FLAGS, *flags['nvcc']]
        )
        record['architectures'] = os.environ['TORCH_CUDA_ARCH_LIST']
    return record


def build_command() -> type:
    """torch's build_ext, which also leaves a record beside each library."""
    from torch.utils.cpp_extension import BuildExtension

    class BuildAndRecord(BuildExtension):
        def run(self):
            super().run()
            for built in self.extensions:
                # In the source folder for an installation in place, else in the build folder.
                library = Path(self.get_ext_fullpath(built.name))
                record = build_record(built, library, self)
                path = library.with_name(f'{built.name.rpartition(".")[2]}.build.json')
                path.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')

    return BuildAndRecord


def extension() -> dict:
    """The setup() arguments that build ddetr_plugin.ops._C and, where wanted, ._C_cuda."""
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    # The stable ABI of torch 2.10: one library for this and every later torch.
    major, minor = TORCH_NEEDED
    defines = [('TORCH_TARGET_VERSION', f'0x{major:02x}{minor:02x}000000000000')]
    flags = ['-O3', '-std=c++17', '-fvisibility=hidden', '-Wall', '-Wno-psabi', '-g0']
    common = {
        'depends': [str(path) for end in ('h', 'cuh') for path in Path('ops').rglob(f'*.{end}')],
        # No Python symbols inside: the library serves every CPython.
        'py_limited_api': True,
    }
    modules = [
        CppExtension(
            'ddetr_plugin.ops._C',
            ['ops/ms_deform_attn.cpp', *sorted(map(str, Path('ops/cpu').glob('*.cpp')))],
            define_macros=defines,
            extra_compile_args={'cxx': flags},
            **common,
        )
    ]
    if cuda_wanted():
        architectures = cuda_architectures()
        # torch turns this into nvcc's options; without it, it asks the GPU that is visible.
        os.environ['TORCH_CUDA_ARCH_LIST'] = ';'.join(architectures)
        sources = [path for end in ('cpp', 'cu') for path in Path('ops/cuda').glob(f'*.{end}')]
        modules.append(
            CUDAExtension(
                'ddetr_plugin.ops._C_cuda',
                sorted(map(str, sources)),
                define_macros=[*defines, ('USE_CUDA', '1')],
                extra_compile_args={
                    'cxx': [*flags, f'-DDDETR_CUDA_ARCHITECTURES="{" ".join(architectures)}"'],
                    'nvcc': ['-O3', '-std=c++17', '-Xcompiler=-fvisibility=hidden'],
                },
                **common,
            )
        )
    return {
        'ext_modules': modules,
        'cmdclass': {'build_ext': build_command()},
        'options': {'bdist_wheel': {'py_limited_api': 'cp310'}},
    }


def native() -> dict:
    """The setup() arguments for the operator; empty when it is not to be built."""
    wish = os.environ.get('DDETR_BUILD_OPS', '')
    if wish not in ('', '0', '1'):
        sys.exit(f'DDETR_BUILD_OPS must be 0, 1 or unset, got {wish!r}')
    # An sdist only packs sources.
    if wish == '0' or 'sdist' in sys.argv or 'egg_info' in sys.argv:
        return {}
    reason = reason_not_to_build()
    if reason is None:
        find_toolkit()
        return extension()
    if wish == '1':
        sys.exit(f'DDETR_BUILD_OPS=1, but the operator cannot be built: {reason}')
    notice(
        f'installing WITHOUT the native operator: {reason}.\n'
        'It will run on the much slower PyTorch path.'
    )
    return {}


arguments = native()
arguments.setdefault('cmdclass', {})['build_py'] = BuildWithIndex
setup(
    name='ddetr_plugin',
    version=version(),
    description='Deformable DETR as registry components for MMDetection',
    license='Apache-2.0',
    packages=find_packages(include=['ddetr_plugin', 'ddetr_plugin.*']),
    package_data={'ddetr_plugin': ['py.typed']},
    entry_points={'console_scripts': ['ddetr = ddetr_plugin.cli:main']},
    python_requires='>=3.10',
    install_requires=['torch>=2.10', 'numpy', 'scipy', 'pycocotools'],
    # Not hard requirements: forks of them are distributed under other names.
    extras_require={'mm': ['mmengine==0.10.7', 'mmdet==3.3.0', 'mmcv-lite==2.1.0']},
    zip_safe=False,
    **arguments,
)
