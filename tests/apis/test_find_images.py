"""Which files of a folder are predicted, and that nothing is left out without a word."""

import pytest

from ddetr_plugin.apis import find_images


@pytest.fixture
def folder(tmp_path):
    for name in (
        'a.JPG',
        'b.avif',
        'c.gif',
        'd.mp4',
        'notes.txt',
        'e.gif',
        'below/f.png',
        'out/a.JPG',
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found]


def test_what_is_left_out_of_a_folder_is_counted_and_named(folder):
    found, left_out = find_images(folder)
    assert names(found, folder) == ['a.JPG', 'b.avif']
    assert set(left_out) == {
        '2 .gif files: c.gif, e.gif',
        '1 .mp4 files: d.mp4',
        '1 .txt files: notes.txt',
        '2 folders (--recursive looks into them): below, out',
    }


def test_folders_below_are_looked_into_but_not_that_of_the_results(folder):
    found, left_out = find_images(folder, recursive=True, skip=folder / 'out')
    assert names(found, folder) == ['a.JPG', 'b.avif', 'below/f.png']
    assert not any('folders' in line for line in left_out)


def test_one_file_of_any_kind_and_a_glob_are_taken_as_they_are(folder):
    assert find_images(folder / 'c.gif') == ([folder / 'c.gif'], [])
    found, left_out = find_images(folder / '*.gif')
    assert names(found, folder) == ['c.gif', 'e.gif'] and left_out == []


def test_a_folder_without_images_says_what_it_has(folder, tmp_path):
    (folder / 'a.JPG').unlink()
    (folder / 'b.avif').unlink()
    with pytest.raises(FileNotFoundError, match=r'no image in the folder .*2 \.gif files: c\.gif'):
        find_images(folder)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='which is empty'):
        find_images(tmp_path / 'empty')
    with pytest.raises(FileNotFoundError, match='no file, no folder with images, and no glob'):
        find_images(tmp_path / 'absent')
