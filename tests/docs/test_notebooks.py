"""The notebooks run in a folder as `make demo` leaves it, and are kept without outputs."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_python_blocks import user_folder  # noqa: F401  a fixture

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / 'examples').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path, user_folder, tmp_path, monkeypatch):  # noqa: F811
    here = tmp_path / 'here'
    shutil.copytree(user_folder, here)
    images = here / 'data/demo/images'
    images.mkdir(parents=True)
    for number in range(4):
        shutil.copy(here / 'image.jpg', images / f'val_{number}.jpg')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={'metadata': {'path': str(here)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert all(cell.execution_count for cell in code)
    assert any(output for cell in code for output in cell.outputs)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get('outputs') and not cell.get('execution_count')


def test_both_notebooks_are_there():
    assert [path.name for path in NOTEBOOKS] == ['detect.ipynb', 'swap_a_part.ipynb']
