"""Progress is shown to whoever looks at a terminal, and to nobody else."""

import io
import json

import pytest

from ddetr_plugin.apis.demo_data import make_demo_data
from ddetr_plugin.cli import run_command
from ddetr_plugin.progress import track


class Screen(io.StringIO):
    """A standard output that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def open_screen(monkeypatch):
    """Makes the standard output a terminal of 120 columns, and returns what it is sent.

    Not in the fixture itself: pytest captures anew when the test begins.
    """

    def open_():
        found = Screen()
        monkeypatch.setattr('sys.stdout', found)
        monkeypatch.setenv('TERM', 'xterm')
        monkeypatch.setenv('COLUMNS', '120')
        return found

    return open_


def test_a_terminal_shows_how_many_are_done_how_fast_and_how_long_it_takes(open_screen):
    screen = open_screen()
    taken = []
    for item in track(range(7), 'Images'):
        taken.append(item)
        print(f'line {item}')
    assert taken == list(range(7))
    shown = screen.getvalue()
    assert 'Images' in shown and '7/7' in shown and '/s' in shown and 'time left' in shown
    assert 'line 3' in shown, 'what is printed is not lost'


def test_a_number_of_unknown_items_is_shown_too(open_screen):
    screen = open_screen()
    assert list(track(iter('abc'), 'Frames')) == ['a', 'b', 'c']
    assert '3/?' in screen.getvalue()


def test_nothing_is_shown_where_there_is_no_terminal(capsys):
    assert list(track([1, 2], 'Images')) == [1, 2]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ''


def test_an_error_leaves_the_terminal_as_it_was(open_screen):
    screen = open_screen()

    def broken():
        yield 1
        raise KeyError

    with pytest.raises(KeyError):
        list(track(broken(), 'Images'))
    # The cursor is shown again.
    assert screen.getvalue().rfind('\x1b[?25h') > screen.getvalue().rfind('\x1b[?25l')


def test_checks_and_scenes_have_bars(open_screen, tiny_coco, tmp_path):
    screen = open_screen()
    assert make_demo_data(tmp_path / 'scenes', train=3, val=2)
    assert 'Making scenes (train)' in screen.getvalue() and '3/3' in screen.getvalue()
    folder = tmp_path / 'data'
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'images').symlink_to(tiny_coco.images)
    content = json.loads(tiny_coco.annotations.read_text())
    (folder / 'annotations' / 'instances_train.json').write_text(json.dumps(content))
    run_command('check', [str(folder)])
    shown = screen.getvalue()
    assert 'Checking images' in shown and '8/8' in shown
    assert 'nothing stands in the way of a training' in shown
