"""Shell commands of README and docs name what there is; those of the README are run somewhere.

Words in capitals, such as CONFIG, are the reader's.
"""

import importlib
import importlib.util
import re
import shlex

import pytest
from doc_pages import PAGES, ROOT, name, parse

from ddetr_plugin.cli import COMMANDS, make_parser

MAKEFILE = (ROOT / 'Makefile').read_text()
TOOLS = {'check_dataset': 'check', 'convert_checkpoint': 'convert', 'make_demo_data': 'demo_data'}
INLINE = re.compile(r'`((?:(?:ddetr|make|torchrun|python -m) |python tools/)[^`\n]+)`')
TARGET = re.compile(r'^[A-Z_./]+$')

# What runs each command of the README: a file, and the words in it that do.
RUN_BY = {
    'make demo': ('Makefile', 'tools/demo.py'),
    'make test': ('.ci/run', 'make test'),
    'pip install': ('tests/package/test_packaging.py', "'pip', 'install'"),
    'ddetr doctor': ('tests/cli/test_ddetr_command.py', "main(['doctor'])"),
    'ddetr predict': ('tests/cli/test_predict.py', 'predict.py'),
    'ddetr train': ('tests/cli/test_tools.py', 'train.py'),
    'ddetr test': ('tests/cli/test_tools.py', 'test.py'),
}


def block_commands(path):
    """The commands in the blocks of a page, as lists of words, without comments."""
    found = []

    def collect(example):
        for line in str(example.parsed).replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            found.extend([words] if words else [])

    for example in parse(path, {'bash': collect}).examples():
        example.evaluate()
    return found


def inline_commands(path):
    """Those within sentences, which may leave out what is not spoken of."""
    return [shlex.split(text) for text in INLINE.findall(path.read_text())]


def check_make(words):
    for word in words:
        variable, assigned, _ = word.partition('=')
        if assigned:
            assert re.search(rf'^{variable} \?=', MAKEFILE, re.MULTILINE), f'no {variable} in make'
        else:
            assert re.search(rf'^{word}: .*## ', MAKEFILE, re.MULTILINE), f'no target {word}'


def check_ours(command, arguments, whole):
    parser = make_parser(command)
    if whole:
        # It ends the process where something does not fit.
        values = parser.parse_args(arguments)
        config = getattr(values, 'config', None)
        if config and not TARGET.match(config) and not config.startswith(('work_dirs/', 'my_')):
            from ddetr_plugin.apis import find_config

            find_config(config if not config.startswith('configs/') else str(ROOT / config))
        return
    known = {option for action in parser._actions for option in action.option_strings}
    for word in arguments:
        assert not word.startswith('-') or word in known, f'{command} has no {word}'


def check_module(module, arguments, capsys):
    if module == 'ddetr_plugin.cli':
        check_ours(arguments[0], arguments[1:], whole=False)
        return
    assert importlib.util.find_spec(module), f'there is no {module}'
    if not module.startswith('benchmarks.'):
        return
    if importlib.util.find_spec(module).submodule_search_locations:
        module = f'{module}.__main__'
    with pytest.raises(SystemExit):
        importlib.import_module(module).main(['--help'])
    said = capsys.readouterr().out
    for word in arguments:
        assert not word.startswith('--') or word in said, f'{module} has no {word}'


def check(words, capsys, whole):
    """Fails where a command names what there is not; `whole` if nothing of it was left out."""
    program, *arguments = words
    if program == 'torchrun':
        rest = [word for word in arguments if not word.startswith('--nproc')]
        program, arguments = 'python', rest
    if program == 'make':
        check_make(arguments)
    elif program == 'ddetr':
        if arguments and arguments[0] in COMMANDS:
            check_ours(arguments[0], arguments[1:], whole)
        else:
            assert not arguments, f'ddetr has no command {arguments[0]}'
    elif program == 'python' and arguments[0] == '-m':
        check_module(arguments[1], arguments[2:], capsys)
    elif program == 'python':
        script = ROOT / arguments[0]
        assert script.is_file(), f'there is no {script}'
        if script.parent.name == 'tools':
            command = TOOLS.get(script.stem, script.stem)
            check_ours(command, arguments[1:], whole)
    else:
        assert program == 'pip', f'nothing is known of {program}'
        for word in arguments:
            extra = re.fullmatch(r'\.\[(\w+)\]', word)
            assert not extra or f"extras_require={{'{extra[1]}'" in (ROOT / 'setup.py').read_text()


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_commands_of_a_page_name_what_there_is(path, capsys):
    for whole, commands in ((True, block_commands(path)), (False, inline_commands(path))):
        for words in commands:
            try:
                check(words, capsys, whole)
            except SystemExit:
                pytest.fail(f'{shlex.join(words)}: {capsys.readouterr().err}')


def test_every_command_of_the_readme_is_run_by_a_test_or_by_make():
    for words in block_commands(ROOT / 'README.md'):
        file, text = RUN_BY[' '.join(words[:2])]
        assert text in (ROOT / file).read_text(), f'{file} no longer runs {shlex.join(words)}'


def test_pages_with_commands_are_looked_into():
    assert len(block_commands(ROOT / 'README.md')) >= 8
    assert sum(len(block_commands(path)) for path in PAGES) >= 25
    assert sum(len(inline_commands(path)) for path in PAGES) >= 25
