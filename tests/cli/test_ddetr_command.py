"""The command `ddetr`: help without waiting, one way to each command, statuses and messages."""

import subprocess
import sys
from pathlib import Path

import pytest

from ddetr_plugin import cli
from ddetr_plugin.apis import doctor
from ddetr_plugin.apis.configs import list_configs
from ddetr_plugin.cli import COMMANDS, main, make_parser, run_command
from ddetr_plugin.version import __version__

REPO = Path(__file__).resolve().parents[2]
TOOLS = dict(
    train='train',
    test='test',
    predict='predict',
    demo='demo',
    check_dataset='check',
    convert_checkpoint='convert',
    make_demo_data='demo_data',
)


def test_the_help_names_every_command(capsys):
    for arguments in (['--help'], ['-h']):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        said = capsys.readouterr().out
        for name, what in COMMANDS.items():
            assert f'  {name} ' in said and what in said
    with pytest.raises(SystemExit) as stop:
        main(['--version'])
    assert stop.value.code == 0 and capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize('arguments', [[], ['trian'], ['--no-such-option']])
def test_a_wrong_command_is_refused_with_the_right_ones(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert 'COMMAND' in said and 'Traceback' not in said
    if arguments == ['trian']:
        assert all(name in said for name in COMMANDS)


@pytest.mark.parametrize('name', [*COMMANDS, 'demo_data'])
def test_every_command_has_a_help_of_its_own(capsys, name):
    with pytest.raises(SystemExit) as stop:
        run_command(name, ['--help'], f'ddetr {name}')
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert f'ddetr {name}' in said and '%(prog)s' not in said
    # What the first line says, a command does.
    assert len(said.splitlines()) > 5


@pytest.mark.parametrize(('tool', 'command'), TOOLS.items())
def test_a_tool_is_the_command(monkeypatch, tool, command):
    import runpy

    called = []
    monkeypatch.setattr(cli, 'run_command', lambda *arguments: called.append(arguments))
    source = REPO / 'tools' / f'{tool}.py'
    runpy.run_path(str(source), run_name='__main__')
    assert called == [(command,)]
    assert len(source.read_text().splitlines()) < 10


def test_options_after_the_command_are_its_own(monkeypatch):
    called = []
    monkeypatch.setattr(cli, 'run_command', lambda *arguments: called.append(arguments))
    main(['train', 'config.py', '--cfg-options', 'a=1', '--help'])
    assert called == [('train', ['config.py', '--cfg-options', 'a=1', '--help'], 'ddetr train')]


def test_a_help_loads_no_mmdet_and_what_takes_as_long():
    code = (
        'import sys\n'
        'from ddetr_plugin.cli import main, make_parser\n'
        'for name in ("train", "test", "predict", "configs", "doctor", "demo_data"):\n'
        '    make_parser(name)\n'
        'try: main(["--help"])\n'
        'except SystemExit: pass\n'
        'print([n for n in ("mmdet", "mmcv", "cv2", "sklearn") if n in sys.modules])\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == '[]', done.stdout


def test_configs_are_listed_with_what_is_known_of_them(capsys):
    main(['configs'])
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[:3] == ['name', 'parameters', 'AP']
    assert [line.split()[0] for line in said[1:]] == [record.name for record in list_configs()]
    for line, record in zip(said[1:], list_configs()):
        if record.published_ap is not None:
            assert f'{record.published_ap:.1f}' in line
        if record.parameters is not None:
            assert f'{record.parameters:,}' in line


@pytest.fixture
def quick(monkeypatch):
    """A doctor that does not measure."""
    from ddetr_plugin.engine import precision

    ratios = {'torch.bfloat16': 0.5, 'torch.float16': 12.0}
    monkeypatch.setattr(precision, 'time_ratio', lambda dtype: ratios[str(dtype)])


def test_the_doctor_says_what_there_is(quick, capsys):
    main(['doctor'])
    said = capsys.readouterr().out
    for name in ('python', 'torch', 'mmengine', 'mmcv', 'mmdet', 'numpy', 'pycocotools'):
        assert any(line.startswith(f'{name} ') for line in said.splitlines()), name
    assert 'bfloat16 on the CPU' in said and '0.50 times as long as float32: pays off' in said
    assert '12.00 times as long as float32: does not pay off' in said
    assert 'operator ' in said and 'all that is required is there' in said


def test_the_doctor_names_the_remedy_of_what_is_missing(quick, capsys, monkeypatch):
    import_module = doctor.importlib.import_module

    def lacking(name, *rest):
        if name in ('pycocotools', 'panopticapi'):
            raise ImportError(f'No module named {name!r}')
        return import_module(name, *rest)

    monkeypatch.setattr(doctor.importlib, 'import_module', lacking)
    with pytest.raises(SystemExit) as stop:
        # Commands themselves are imported so, too.
        make_parser('doctor')
        run_command('doctor', [])
    assert stop.value.code == 'error: pycocotools: see above'
    said = capsys.readouterr().out
    assert "missing: No module named 'pycocotools'" in said
    assert 'panopticapi-lite; needed for evaluation of panoptic segmentation' in said


def test_the_doctor_says_how_the_operator_runs(monkeypatch):
    from ddetr_plugin import ops

    monkeypatch.setattr(ops, 'native_load_error', lambda: 'it is not built')
    found = doctor._operator()
    assert found.found == 'PyTorch, which is slow: it is not built'
    assert 'pip install --no-build-isolation' in found.remedy and not found.required
